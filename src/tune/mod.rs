//! Tuning: the fastest schedule for a model and its user's prompts, whose loss of score stays within a bound.
//!
//! [`space`] lists schedules to try, [`halves`] divides the prompts: on one half [`halving`] searches, the other half says what the
//! schedule found is worth on prompts that had no part in choosing it. [`beside_dense`] measures one schedule on one prompt, and
//! [`trial`] keeps that in a file of results, as [`crate::eval::results`] writes them, so that a search that was stopped goes on.

pub mod beside_dense;
pub mod halves;
pub mod halving;
pub mod space;
pub mod trial;
