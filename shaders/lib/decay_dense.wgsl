// The state of linear attention decays by the exponential of this, per head or per head and key row. Alternative: decay_none.
@group(0) @binding(10) var<storage, read> decay: array<Elem>;

fn decay_factor(row: u32, head: u32, d: u32) -> f32 {
    return exp(f32(decay[row * params.decay_width + head * params.decay_head + d * params.decay_key]));
}
