// A mask [batch, steps] of one byte per step, four to a word; false leaves a step out. Alternatives: steps_all,
// steps_lengths.
@group(0) @binding(10) var<storage, read> step_mask: array<u32>;

fn is_masked(row: u32) -> bool {
    return ((step_mask[row / 4u] >> (row % 4u * 8u)) & 0xffu) == 0u;
}

fn step_count(batch: u32) -> u32 {
    return params.steps;
}
