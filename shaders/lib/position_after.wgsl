// Row i comes i after those that are there, whose number is data, [batch]. Alternatives: position_counted, position_given.
@group(0) @binding(14) var<storage, read> lengths: array<u32>;

fn position(batch: u32, i: u32) -> u32 {
    // Past the largest number is still past the end.
    let sum = lengths[batch] + i;
    return select(sum, 0xffffffffu, sum < i);
}
