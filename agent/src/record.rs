//! Outcomes become numbers. Nothing here waits, and nothing is added up until somebody asks.

pub mod observed;
pub mod prometheus;
mod slab;

pub use slab::{Bytes, Counter, HISTOGRAM_BOUNDS, Histogram, Slab};
