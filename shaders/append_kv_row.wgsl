// append_kv_row: keys[b, lengths[b] + i] = rotate(norm(k[b, i])), values[b, lengths[b] + i] = v[b, i], in place, and
// lengths'[b] = lengths[b] + the rows appended.
//
//   k, v      [batch, kv_heads, seq_new, head_dim or head_dim_v], read by strides
//   keys      [batch, kv_heads, capacity, head_dim], or pages (lib/cache_paged); floats, or levels with scales (lib/store_levels)
//   values    likewise of head_dim_v
//   lengths, lengths', new_lengths  [batch]
//
// A workgroup owns one row, of k or of v in turns; its lanes walk the row together. The first workgroup of a batch element also
// writes its length. Rows that the cache has no room for are not written, and lengths' ends at the capacity.

const LANES: u32 = 64u;
alias Elem = f32; // host

struct Params {
    batch: u32,
    kv_heads: u32,
    seq_new: u32,
    capacity: u32,
    head_dim: u32,
    head_dim_v: u32,
    k_head: u32,
    k_row: u32,
    v_head: u32,
    v_row: u32,
    pages: u32,
    page_size: u32,
    per_sequence: u32,
    rotary_dim: u32,
    interleaved: u32,
    per_token: u32,
    positions: u32,
    epsilon: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> k: array<Elem>;
@group(0) @binding(2) var<storage, read> v: array<Elem>;
@group(0) @binding(3) var<storage, read> lengths: array<u32>;
@group(0) @binding(6) var<storage, read_write> advanced: array<u32>;

// A row of k or v on its way: where it starts, its elements, and what its norm and its angles are.
struct Row {
    is_value: bool,
    start: u32,
    dim: u32,
    factor: f32,
    angles: u32,
}

fn load(at: u32) -> f32 {
    return f32(k[at]);
}

fn element(row: Row, d: u32) -> f32 {
    if row.is_value {
        return f32(v[row.start + d]);
    }
    return rotated(row.start, d, row.factor, row.angles);
}

fn value_row(batch: u32, head: u32, i: u32) -> Row {
    let start = batch * params.kv_heads * params.seq_new * params.head_dim_v + head * params.v_head + i * params.v_row;
    return Row(true, start, params.head_dim_v, 1.0, 0u);
}

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let group = workgroup.x + workgroup.y * workgroups.x;
    let rows = 2u * params.kv_heads * params.seq_new;
    let batch = group / max(rows, 1u);
    if batch >= params.batch {
        return;
    }
    let index = group - batch * max(rows, 1u);
    let length = min(lengths[batch], params.capacity);
    let appended = min(new_rows(batch), params.capacity - length);
    if index == 0u && lane == 0u {
        advanced[batch] = length + appended;
    }
    if rows == 0u {
        return;
    }
    let i = index / 2u % params.seq_new;
    let head = index / 2u / params.seq_new;
    if i >= appended {
        return;
    }
    let to = cache_row(batch, head, length + i);
    if index % 2u == 1u {
        store_row(lane, value_row(batch, head, i), to);
        return;
    }
    let start = batch * params.kv_heads * params.seq_new * params.head_dim + head * params.k_head + i * params.k_row;
    let factor = norm_factor(lane, start, params.head_dim);
    let position = min(length + i, params.positions - 1u);
    let angles = select(position, batch * params.seq_new + i, params.per_token != 0u) * (params.rotary_dim / 2u);
    store_row(lane, Row(false, start, params.head_dim, factor, angles), to);
}
