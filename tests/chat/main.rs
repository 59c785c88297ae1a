//! From messages to tokens: whose control tokens count, where messages stand, and templates that mean no good.

mod harmony;
mod hostile;
mod language;
mod messages;
mod models;
#[path = "../support/mod.rs"]
mod support;
mod templates;
