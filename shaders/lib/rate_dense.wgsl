// How much of a value linear attention learns, per head or for all. Alternative: rate_none.
@group(0) @binding(11) var<storage, read> beta: array<Elem>;

fn update_rate(row: u32, head: u32) -> f32 {
    return f32(beta[row * params.beta_width + head % params.beta_width]);
}
