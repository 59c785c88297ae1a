//! Broken model files and what has to hold for each; the fuzz target `model` includes this folder, too.

pub mod exercise;
pub mod mutate;
