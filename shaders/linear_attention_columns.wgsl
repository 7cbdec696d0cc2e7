// linear_attention_columns: attention without softmax, as a recurrence over a state. For each position t, with S of one key head:
//
//   S = decay_t · S                             each key row by its own factor
//   S = S + k_t ⊗ v_t, or with DELTA: S = S + k_t ⊗ beta_t (v_t − Sᵀ k_t)
//   y_t = scale · q_tᵀ S                        for each query head of the key head
//
//   q        [batch, seq, kv_heads × group × head_dim]
//   k        [batch, seq, kv_heads × head_dim]
//   v        [batch, seq, kv_heads × head_dim_v]
//   y        [batch, seq, kv_heads × group × head_dim_v]
//   present  [batch, kv_heads, head_dim, head_dim_v], the state after the last position
//
// Columns of S do not depend on each other. A workgroup owns COLUMNS of them of one batch element and key head and walks the
// positions; PARTS lanes share a column, each with SLICE of its rows in registers. Rows past head_dim are zeros.
// The recurrence is ONNX's LinearAttention (Yang et al., arXiv:2412.06464).

const COLUMNS: u32 = 16u;
const PARTS: u32 = 16u; // host
const SLICE: u32 = 4u; // host
const DELTA: bool = true; // host
alias Elem = f32; // host
alias StateElem = f32; // host

const LANES: u32 = COLUMNS * PARTS;
const WIDTH: u32 = PARTS * SLICE;

struct Params {
    count: u32,
    blocks: u32,
    kv_heads: u32,
    group: u32,
    seq: u32,
    head_dim: u32,
    head_dim_v: u32,
    decay_width: u32,
    decay_head: u32,
    decay_key: u32,
    beta_width: u32,
    scale: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> q: array<Elem>;
@group(0) @binding(2) var<storage, read> k: array<Elem>;
@group(0) @binding(3) var<storage, read> v: array<Elem>;
@group(0) @binding(4) var<storage, read_write> y: array<Elem>;
@group(0) @binding(5) var<storage, read_write> present: array<StateElem>;

var<workgroup> wg_key: array<f32, WIDTH>;
var<workgroup> wg_decay: array<f32, WIDTH>;
var<workgroup> wg_query: array<f32, WIDTH>;
var<workgroup> wg_part: array<f32, LANES>;

// The sum over the lanes that share a column.
fn sum_parts(lane: u32, value: f32) -> f32 {
    wg_part[lane] = value;
    workgroupBarrier();
    var sum = 0.0;
    for (var i = lane % COLUMNS; i < LANES; i += COLUMNS) {
        sum += wg_part[i];
    }
    workgroupBarrier();
    return sum;
}

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let owned = workgroup.x + workgroup.y * workgroups.x;
    if owned >= params.count {
        return;
    }
    let head = owned / params.blocks % params.kv_heads;
    let batch = owned / params.blocks / params.kv_heads;
    let column = owned % params.blocks * COLUMNS + lane % COLUMNS;
    let part = lane / COLUMNS;
    let inside = column < params.head_dim_v;
    let first_state = (batch * params.kv_heads + head) * params.head_dim;

    var state: array<f32, SLICE>;
    for (var i = 0u; i < SLICE; i++) {
        let d = part + i * PARTS;
        state[i] = 0.0;
        if inside && d < params.head_dim {
            state[i] = past_state((first_state + d) * params.head_dim_v + column);
        }
    }
    for (var t = 0u; t < params.seq; t++) {
        let row = batch * params.seq + t;
        for (var d = lane; d < WIDTH; d += LANES) {
            wg_key[d] = 0.0;
            wg_decay[d] = 0.0;
            if d < params.head_dim {
                wg_key[d] = f32(k[(row * params.kv_heads + head) * params.head_dim + d]);
                wg_decay[d] = decay_factor(row, head, d);
            }
        }
        workgroupBarrier();
        var value = 0.0;
        if inside {
            value = f32(v[(row * params.kv_heads + head) * params.head_dim_v + column]);
        }
        var recalled = 0.0;
        for (var i = 0u; i < SLICE; i++) {
            let d = part + i * PARTS;
            state[i] *= wg_decay[d];
            recalled += state[i] * wg_key[d];
        }
        if DELTA {
            value = update_rate(row, head) * (value - sum_parts(lane, recalled));
        }
        for (var i = 0u; i < SLICE; i++) {
            state[i] += wg_key[part + i * PARTS] * value;
        }
        for (var h = 0u; h < params.group; h++) {
            let query = (row * params.kv_heads + head) * params.group + h;
            for (var d = lane; d < WIDTH; d += LANES) {
                wg_query[d] = 0.0;
                if d < params.head_dim {
                    wg_query[d] = f32(q[query * params.head_dim + d]);
                }
            }
            workgroupBarrier();
            var partial = 0.0;
            for (var i = 0u; i < SLICE; i++) {
                partial += state[i] * wg_query[part + i * PARTS];
            }
            // Its barriers also part these reads of keys and queries from the writes that come next.
            let result = params.scale * sum_parts(lane, partial);
            if inside && part == 0u {
                y[query * params.head_dim_v + column] = Elem(result);
            }
        }
    }
    for (var i = 0u; i < SLICE; i++) {
        let d = part + i * PARTS;
        if inside && d < params.head_dim {
            present[(first_state + d) * params.head_dim_v + column] = StateElem(state[i]);
        }
    }
}
