//! Layers built on [`Graph`](crate::Graph).
