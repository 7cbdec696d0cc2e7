// Reductions over a workgroup of LANES invocations, a power of two, through workgroup memory.
// Every invocation must call them, and gets the result.
var<workgroup> wg_reduce: array<f32, LANES>;

fn reduce_max(lane: u32, value: f32) -> f32 {
    wg_reduce[lane] = value;
    for (var half = LANES / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane < half {
            wg_reduce[lane] = max(wg_reduce[lane], wg_reduce[lane + half]);
        }
    }
    workgroupBarrier();
    let result = wg_reduce[0];
    workgroupBarrier();
    return result;
}

fn reduce_sum(lane: u32, value: f32) -> f32 {
    wg_reduce[lane] = value;
    for (var half = LANES / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane < half {
            wg_reduce[lane] += wg_reduce[lane + half];
        }
    }
    workgroupBarrier();
    let result = wg_reduce[0];
    workgroupBarrier();
    return result;
}
