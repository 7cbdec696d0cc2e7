// Each row's position is data, [batch, seq]. Alternatives: position_counted, position_after.
@group(0) @binding(14) var<storage, read> positions: array<u32>;

fn position(batch: u32, i: u32) -> u32 {
    return positions[batch * params.seq + i];
}
