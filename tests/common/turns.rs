//! Trials that are too many to run on every device.

use libtest_mimic::Trial;

/// Of a GPU's two trials the one whose turn it is, with run-time checks or without. For many trials that are alike, as their
/// pipelines take a software device about a second each to compile; `regard verify` runs all kernels on all.
///
/// Turns go by the number of ones in a trial's binary number, so that no option which every second or fourth trial has always goes
/// with checks.
pub fn in_turn(number: usize, mut trials: Vec<Trial>) -> Vec<Trial> {
    let others = [" unchecked", " checked"][number.count_ones() as usize % 2];
    trials.retain(|trial| !trial.name().ends_with(others));
    trials
}
