//! Trials that are too many to run on every device.

use libtest_mimic::Trial;

/// Of a GPU's two trials the one whose turn it is: even numbers with run-time checks, odd ones without. For many trials that are
/// alike, as their pipelines take a software device about a second each to compile; `regard verify` runs all kernels on all.
pub fn in_turn(number: usize, mut trials: Vec<Trial>) -> Vec<Trial> {
    let others = [" unchecked", " checked"][number % 2];
    trials.retain(|trial| !trial.name().ends_with(others));
    trials
}
