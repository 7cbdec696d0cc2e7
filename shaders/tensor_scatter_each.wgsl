// tensor_scatter_each: y = cache, except that rows from starts[batch] on are those of update.
//
//   cache, y  [batch, .., capacity, inner]
//   update    [batch, .., seq, inner], seq up to capacity
//   starts    [batch]
//
// A lane owns one element of y, so that writes are contiguous, and takes it from where it comes. Rows that would lie past the
// capacity are left out, or go on at row 0 when CIRCULAR.

const LANES: u32 = 256u;
const CIRCULAR: bool = false; // host
alias Elem = f32; // host

struct Params {
    count: u32,
    batch_block: u32,
    capacity: u32,
    seq: u32,
    inner: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> cache: array<Elem>;
@group(0) @binding(2) var<storage, read> update: array<Elem>;
@group(0) @binding(3) var<storage, read> starts: array<u32>;
@group(0) @binding(4) var<storage, read_write> y: array<Elem>;

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let at = (workgroup.x + workgroup.y * workgroups.x) * LANES + lane;
    if at >= params.count {
        return;
    }
    let column = at % params.inner;
    let row = at / params.inner % params.capacity;
    let outer = at / params.inner / params.capacity;
    var start = starts[at / params.batch_block];
    // Rows from the start on to this one; seq and more are none of the update's.
    var distance = params.seq;
    if CIRCULAR {
        start %= params.capacity;
        distance = select(row + (params.capacity - start), row - start, row >= start);
    } else if row >= start {
        distance = row - start;
    }
    if distance < params.seq {
        y[at] = update[(outer * params.seq + distance) * params.inner + column];
    } else {
        y[at] = cache[at];
    }
}
