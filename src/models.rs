//! Whole models, from the files that their authors publish.

mod bert;
mod config;
mod golden;
mod plans;
mod sentence_encoder;

pub use sentence_encoder::{EncoderOptions, SentenceEncoder};
