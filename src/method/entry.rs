//! Entry: which tokens of a prompt go into the network at all, for methods that read a part of a prompt as if it were all.

use super::spts::schedule::Probe;

/// Which tokens of a prompt enter the network.
#[derive(Clone, Debug, PartialEq)]
pub enum Entry {
    /// All of them.
    All,
    /// Those at these indices, ascending and not empty, each at its own position.
    At(Vec<usize>),
    /// Those that score best in a program that runs before the prompt's.
    Best(Search),
}

/// A program that scores a prompt's tokens, and what is made of the scores.
#[derive(Clone, Debug, PartialEq)]
pub struct Search {
    /// The model whose layers score.
    pub reader: Reader,
    /// How a layer scores. Scores of several layers are joined by their maximum.
    pub probe: Probe,
    /// Tokens that enter, those that probe among them.
    pub keep: usize,
    /// Tokens are chosen in chunks of so many, by the mean of their scores; 1: one by one.
    pub chunk: usize,
    /// Where the chosen ones stand.
    pub positions: Positions,
}

/// The layers whose attention scores the tokens of the prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    /// This layer of the model itself, which is read up to its keys.
    Layer(usize),
    /// All layers of a draft: a smaller model with the same vocabulary.
    Draft,
}

/// The positions of the tokens that enter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Positions {
    /// Those that they have in the prompt.
    Own,
    /// 0, 1, 2 and so on: they are a prompt of their own.
    Renumbered,
}
