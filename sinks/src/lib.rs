//! Where results go. [`views`] holds every rollup's tables in memory as the workers deliver them,
//! answers reads at one epoch over all tables, and computes the differences that subscribers get.
//!
//! The dataflow is generic in the key's width and in the group that is summed; who asks is not.
//! [`tables::Tables`] is the door between them: what a table can be asked, with symbols and
//! integers instead of type parameters.

pub mod block;
pub mod catalog;
pub mod incidents;
pub mod restatement;
mod segment;
pub mod tables;
pub mod views;

pub use block::RowBlock;
pub use catalog::{Catalog, View, ViewId, ViewKind};
pub use incidents::ReadEvents;
pub use restatement::{Restated, Restatement};
pub use tables::{
    Filter, Follow, IncidentKey, IncidentPage, Memory, Page, Place, ReadError, Slots, Span, Start,
    Step, SumQuery, Summed, Tables,
};
pub use views::{INCIDENTS_MAX, Loader, ShardImage, ShardSink, ViewSettings, Views};
