// What every technique of matmul is told, and where one product of a batch starts.

struct Params {
    epilogue: array<vec4<u32>, 2>, // code, operand, p and q of each step
    m: u32,
    n: u32,
    k: u32,
    batch_count: u32,
    batch_middle: u32,
    batch_inner: u32,
    a_outer: u32,
    a_middle: u32,
    a_inner: u32,
    b_outer: u32,
    b_middle: u32,
    b_inner: u32,
    alpha: f32,
}

// Up to three batch axes, a stride of zero where a factor is broadcast.
struct Batch {
    a: u32,
    b: u32,
}

fn batch_offsets(batch: u32) -> Batch {
    let inner = batch % params.batch_inner;
    let middle = batch / params.batch_inner % params.batch_middle;
    let outer = batch / (params.batch_inner * params.batch_middle);
    return Batch(
        outer * params.a_outer + middle * params.a_middle + inner * params.a_inner,
        outer * params.b_outer + middle * params.b_middle + inner * params.b_inner,
    );
}
