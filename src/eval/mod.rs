//! Measures of quality: what skipping costs, and how good the proxies are.
//!
//! [`needle`] asks for numbers hidden in a long text; [`divergence`] compares next-token distributions with dense ones, and
//! [`by_position`] says where they part; [`proxies`] compares proxy norms with the true ones. [`tasks`] asks prompts whose answers
//! are known, [`score`] rates what comes, [`results`] keeps it in a file, and [`summary`] says with [`statistics`] what it means.
//! [`plot`] draws. None knows the command line.

pub mod by_position;
pub mod divergence;
pub mod error;
pub mod needle;
pub mod plot;
pub mod proxies;
pub mod results;
pub mod score;
pub mod statistics;
pub mod summary;
pub mod tasks;
