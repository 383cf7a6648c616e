//! How people ask: reports, views, subscriptions, status, and the live page, over HTTP.
//!
//! Everything here reads [`Tables`], so every answer is of one epoch, and asks what else it needs
//! of one trait, [`Runtime`], which the server implements. Nothing here writes.
//!
//! Limits ([`Limits`]): rows of an answer and of a page, rows that an answer may look at, queries
//! that wait and run, bytes of answers that are not read yet, subscribers, and the rows of one
//! message to a subscriber. Each has an answer of its own when it is reached.
//!
//! [`Tables`]: trueup_sinks::Tables

mod answers;
mod dashboard;
mod gate;
mod json;
mod limits;
mod ops;
mod params;
mod problems;
mod reports;
mod runtime;
mod server;
mod site;
mod subscribe;
mod token;
mod views;

pub use answers::{Reading, Unread};
pub use limits::{InvalidLimit, Limits};
pub use problems::{unknown_method, unknown_route};
pub use runtime::Runtime;
pub use server::{Queries, router};
pub use site::same_site;

#[cfg(test)]
mod tests;
