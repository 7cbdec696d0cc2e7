// embedding_each: y[i, d] = table[ids[i], d].
//
//   table  [rows, width]
//   ids    one u32 for each row of y; one past the end reads the last row
//   y      [ids, width]
//
// A lane owns one element of y, so that writes are contiguous and reads are within a row.

const LANES: u32 = 256u;
alias Elem = f32; // host

struct Params {
    count: u32,
    rows: u32,
    width: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> table: array<Elem>;
@group(0) @binding(2) var<storage, read> ids: array<u32>;
@group(0) @binding(3) var<storage, read_write> y: array<Elem>;

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
    let row = min(ids[at / params.width], params.rows - 1u);
    y[at] = table[row * params.width + at % params.width];
}
