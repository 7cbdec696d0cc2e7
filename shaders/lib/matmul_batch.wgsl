// Where one product of a batch starts. Up to three batch axes, a stride of zero where a factor is broadcast.
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
