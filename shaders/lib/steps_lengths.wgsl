// Only the first steps of a sequence exist. Alternatives: steps_all, steps_mask.
@group(0) @binding(10) var<storage, read> step_counts: array<u32>;

fn is_masked(row: u32) -> bool {
    return false;
}

fn step_count(batch: u32) -> u32 {
    return min(step_counts[batch], params.steps);
}
