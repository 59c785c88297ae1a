//! What a recurrent layer remembers of the tokens read so far: a state of fixed size, in F32.
//!
//! It is there twice: a call begins with one and writes the other, and only when the call is done does that one hold. So a call
//! that fails changes nothing. A third one is kept where a document ends, since a state cannot be taken back to fewer tokens.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::compile::memory::RecurrentTensors;
use crate::ggml::GgmlError;
use crate::ggml::Tensor;
use crate::ggml::arena::{Arena, TensorId};
use crate::ggml::backend::BufferType;
use crate::gguf::GgmlType;
use crate::graph::ir::DeltaHeads;

/// One state: the channels of the last tokens, and a matrix for each value head.
#[derive(Clone, Copy)]
struct Parts {
    conv: TensorId,
    matrices: TensorId,
}

/// The memory of one recurrent layer.
pub struct RecurrentState {
    heads: DeltaHeads,
    buft: BufferType,
    memory: Option<(Arena, [Parts; 2])>,
    /// Of the memory: another number for every allocation of the process.
    generation: u64,
    /// Which of the two states is the current one.
    current: usize,
    /// Tokens that it stands for.
    len: usize,
    kept: Option<(Arena, Parts)>,
    /// Tokens that the one kept stands for.
    kept_len: Option<usize>,
}

static GENERATION: AtomicU64 = AtomicU64::new(1);

impl RecurrentState {
    /// A state without memory, of no tokens.
    pub fn new(buft: BufferType, heads: DeltaHeads) -> Self {
        Self { heads, buft, memory: None, generation: 0, current: 0, len: 0, kept: None, kept_len: None }
    }

    fn declare(arena: &mut Arena, heads: &DeltaHeads) -> Parts {
        let d = heads.head_dim;
        Parts {
            conv: arena.declare("conv_state", GgmlType::F32, &[heads.d_conv - 1, heads.n_channels()]),
            matrices: arena.declare("delta_state", GgmlType::F32, &[d, d, heads.n_head_v]),
        }
    }

    /// Makes room, if there is none yet.
    ///
    /// # Errors
    /// Out of memory.
    pub fn reserve(&mut self) -> Result<(), GgmlError> {
        if self.memory.is_some() {
            return Ok(());
        }
        let mut arena = Arena::new(4);
        let parts = [Self::declare(&mut arena, &self.heads), Self::declare(&mut arena, &self.heads)];
        let all: Vec<TensorId> = parts.iter().flat_map(|p| [p.conv, p.matrices]).collect();
        arena.allocate(&all, self.buft, "recurrent states")?;
        self.memory = Some((arena, parts));
        self.generation = GENERATION.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// What a tile begins with and what it writes. `is_under_way`: it begins with what it writes, as a tile before has left it.
    ///
    /// # Panics
    /// Before the first [`RecurrentState::reserve`].
    pub fn tensors(&self, is_under_way: bool) -> RecurrentTensors<'_> {
        let (arena, parts) = self.memory.as_ref().expect("a reserved state");
        let next = parts[1 - self.current];
        let before = if is_under_way { next } else { parts[self.current] };
        RecurrentTensors {
            conv_before: arena.get(before.conv),
            conv_after: arena.get(next.conv),
            matrices_before: arena.get(before.matrices),
            matrices_after: arena.get(next.matrices),
        }
    }

    /// Tokens that it stands for.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no tokens were read.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Number of the memory: the same as before only if it is the same memory.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Which of the two states holds: calls take turns.
    pub fn turn(&self) -> usize {
        self.current
    }

    /// Makes the state that a call has written the current one, of `n` more tokens.
    pub fn advance(&mut self, n: usize) {
        self.current = 1 - self.current;
        self.len += n;
    }

    /// Forgets all tokens, and what was kept.
    pub fn clear(&mut self) {
        self.kept_len = None;
        self.restart();
    }

    /// Begins with no tokens; what was kept stays.
    fn restart(&mut self) {
        if self.len > 0
            && let Some((arena, parts)) = &self.memory
        {
            for id in [parts[self.current].conv, parts[self.current].matrices] {
                let t = arena.get(id);
                arena.zero(id, 0, t.n_elements() * 4);
            }
        }
        self.len = 0;
    }

    /// Keeps the state as it is now.
    ///
    /// # Errors
    /// Out of memory.
    pub fn keep(&mut self) -> Result<(), GgmlError> {
        let Some((arena, parts)) = &self.memory else { return Ok(()) };
        let (to, kept) = match self.kept.take() {
            Some(kept) => kept,
            None => {
                let mut to = Arena::new(2);
                let kept = Self::declare(&mut to, &self.heads);
                to.allocate(&[kept.conv, kept.matrices], self.buft, "the recurrent states of a document")?;
                (to, kept)
            }
        };
        copy(arena, parts[self.current], &to, kept);
        self.kept = Some((to, kept));
        self.kept_len = Some(self.len);
        Ok(())
    }

    /// Forgets what was kept.
    pub fn forget_kept(&mut self) {
        self.kept_len = None;
    }

    /// Tokens of the state that was kept.
    pub fn kept_len(&self) -> Option<usize> {
        self.kept_len
    }

    /// Goes back to the first `n` tokens: none, those of the state that was kept, or all that were read. A state of more tokens is
    /// kept no longer.
    ///
    /// # Panics
    /// If the state of the first `n` tokens is not there.
    pub fn rewind(&mut self, n: usize) {
        self.kept_len = self.kept_len.filter(|&kept| kept <= n);
        if n == self.len {
            return;
        }
        if n == 0 {
            return self.restart();
        }
        assert_eq!(Some(n), self.kept_len, "a state that was kept");
        let ((arena, parts), (from, kept)) = match (&self.memory, &self.kept) {
            (Some(memory), Some(kept)) => (memory, kept),
            _ => unreachable!("what was kept lies somewhere"),
        };
        copy(from, *kept, arena, parts[self.current]);
        self.len = n;
    }

    /// The kept state's channels and matrices.
    pub fn kept(&self) -> Option<[Tensor<'_>; 2]> {
        let (arena, parts) = self.kept.as_ref().filter(|_| self.kept_len.is_some())?;
        Some([arena.get(parts.conv), arena.get(parts.matrices)])
    }

    /// Fills the state that the next call would write: channels and matrices, as they lie in memory.
    ///
    /// # Panics
    /// Before the first [`RecurrentState::reserve`], or if they are of another size.
    pub fn write(&self, conv: &[u8], matrices: &[u8]) {
        let (arena, parts) = self.memory.as_ref().expect("a reserved state");
        arena.set(parts[1 - self.current].conv, 0, conv);
        arena.set(parts[1 - self.current].matrices, 0, matrices);
    }

    /// Bytes held.
    pub fn n_bytes(&self) -> usize {
        self.memory.as_ref().map_or(0, |(a, _)| a.n_bytes()) + self.kept.as_ref().map_or(0, |(a, _)| a.n_bytes())
    }
}

/// Copies one state over another.
fn copy(from: &Arena, source: Parts, to: &Arena, target: Parts) {
    for (source, target) in [(source.conv, target.conv), (source.matrices, target.matrices)] {
        to.copy_all(target, from.get(source));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ggml::arena::read_bytes;
    use crate::ggml::backend;

    const HEADS: DeltaHeads = DeltaHeads { n_head_k: 1, n_head_v: 2, grouped: false, head_dim: 4, d_conv: 3 };

    fn state() -> RecurrentState {
        let mut state = RecurrentState::new(backend::buffer_type("CPU").expect("a CPU"), HEADS);
        state.reserve().expect("memory");
        state
    }

    /// What a call would write.
    fn compute(state: &RecurrentState, x: u8) {
        state.write(&[x; 2 * 16 * 4], &[x; 2 * 16 * 4]);
    }

    fn begins_with(state: &RecurrentState) -> u8 {
        let t = state.tensors(false);
        let (conv, matrices) = (read_bytes(t.conv_before, 0, 128), read_bytes(t.matrices_before, 0, 128));
        assert!(conv == matrices && conv.iter().all(|x| *x == conv[0]));
        conv[0]
    }

    #[test]
    fn a_call_that_fails_changes_nothing() {
        let mut s = state();
        compute(&s, 1);
        s.advance(5);
        compute(&s, 2);
        assert_eq!((s.len(), begins_with(&s)), (5, 1));
        compute(&s, 3);
        s.advance(1);
        assert_eq!((s.len(), begins_with(&s)), (6, 3));
        s.clear();
        assert_eq!((s.len(), begins_with(&s)), (0, 0));
    }

    #[test]
    fn what_was_kept_comes_back() {
        let mut s = state();
        compute(&s, 1);
        s.advance(5);
        s.keep().expect("memory");
        compute(&s, 2);
        s.advance(2);
        s.rewind(7);
        assert_eq!((s.len(), begins_with(&s)), (7, 2));
        s.rewind(5);
        assert_eq!((s.len(), begins_with(&s), s.kept_len()), (5, 1, Some(5)));
        compute(&s, 3);
        s.advance(1);
        s.rewind(5);
        assert_eq!(begins_with(&s), 1);
        s.rewind(0);
        assert_eq!((s.len(), begins_with(&s), s.kept_len(), s.kept().is_none()), (0, 0, None, true));
    }
}
