//! Which layers of a prompt's program take turns in shared memory, and when.

/// Which layers of a program read the prompt in shared memory, and in which phases.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Staged {
    pub(super) turns: Vec<Turn>,
}

/// One layer's turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Turn {
    /// The layer.
    pub layer: usize,
    /// Which of the sequence's shared memories.
    pub memory: usize,
    /// Rows in use when the layer has read the prompt.
    pub n_rows: usize,
    /// The first phase that reads or writes its keys or values.
    pub first_phase: usize,
    /// The last one.
    pub last_phase: usize,
}

impl Staged {
    /// The shared memory that a layer's keys and values lie in.
    pub(super) fn memory_of(&self, layer: usize) -> Option<usize> {
        self.turns.iter().find(|turn| turn.layer == layer).map(|turn| turn.memory)
    }

    /// Whether a layer's turn ends with this phase.
    pub(super) fn ends(&self, phase: usize) -> bool {
        self.turns.iter().any(|turn| turn.last_phase == phase)
    }
}
