// matmul_tiled: c = alpha · a · b + bias, or alpha · a · bᵀ + bias, for each product of a batch.
//
//   a  [.., m, k]    b  [.., k, n], or [.., n, k] when TRANSPOSED_B    bias  [n]    c  [.., m, n]
//   Batch axes are broadcast by strides of zero.
//
// A workgroup of 16 × 16 lanes owns TILE × TILE elements of one product, a lane a block of 4 × 4. K is walked in steps of
// DEPTH; both factors are staged in workgroup memory with k slowest, a's tile transposed, so that a lane reads its four rows
// and its four columns as one vec4 each. Past the edges factors read as zero, and nothing is written.
// With ANNIHILATE a zero in a makes its product zero even where b is NaN or infinite: attention weights of masked keys.

const TRANSPOSED_B: bool = false; // host
const ANNIHILATE: bool = false; // host
alias ElemA = f32; // host
alias ElemB = f32; // host
alias Elem = f32; // host

const EDGE: u32 = 16u;
const TILE: u32 = 4u * EDGE;
const DEPTH: u32 = 16u;
const_assert DEPTH == EDGE; // one vec4 of each factor per lane and step

struct Params {
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

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> a: array<ElemA>;
@group(0) @binding(2) var<storage, read> b: array<ElemB>;
@group(0) @binding(3) var<storage, read_write> c: array<Elem>;

var<workgroup> wg_a: array<vec4<f32>, DEPTH * EDGE>; // [k][row / 4]
var<workgroup> wg_b: array<vec4<f32>, DEPTH * EDGE>; // [k][column / 4]

fn a_element(start: u32, row: u32, k: u32) -> f32 {
    if row >= params.m || k >= params.k {
        return 0.0;
    }
    return f32(a[start + row * params.k + k]);
}

fn b_element(start: u32, k: u32, column: u32) -> f32 {
    if column >= params.n || k >= params.k {
        return 0.0;
    }
    return f32(b[start + select(k * params.n + column, column * params.k + k, TRANSPOSED_B)]);
}

fn multiply(left: f32, right: vec4<f32>) -> vec4<f32> {
    if ANNIHILATE {
        return select(left * right, vec4<f32>(), left == 0.0);
    }
    return left * right;
}

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let tiles_n = (params.n + TILE - 1u) / TILE;
    let tiles_m = (params.m + TILE - 1u) / TILE;
    let tile = workgroup.x + workgroup.y * workgroups.x;
    let batch = tile / (tiles_m * tiles_n);
    if batch >= params.batch_count {
        return;
    }
    let start = batch_offsets(batch);
    let first_row = tile / tiles_n % tiles_m * TILE;
    let first_column = tile % tiles_n * TILE;
    let slow = lane / EDGE;
    let fast = lane % EDGE;
    // Neighbouring lanes read neighbouring addresses: along k where k is contiguous, else along n.
    let b_k = select(slow, fast, TRANSPOSED_B);
    let b_group = select(fast, slow, TRANSPOSED_B);

    var sum: array<vec4<f32>, 4>;
    for (var k = 0u; k < params.k; k += DEPTH) {
        let row = first_row + 4u * slow;
        wg_a[fast * EDGE + slow] = vec4(
            a_element(start.a, row, k + fast),
            a_element(start.a, row + 1u, k + fast),
            a_element(start.a, row + 2u, k + fast),
            a_element(start.a, row + 3u, k + fast),
        );
        let column = first_column + 4u * b_group;
        wg_b[b_k * EDGE + b_group] = vec4(
            b_element(start.b, k + b_k, column),
            b_element(start.b, k + b_k, column + 1u),
            b_element(start.b, k + b_k, column + 2u),
            b_element(start.b, k + b_k, column + 3u),
        );
        workgroupBarrier();
        for (var d = 0u; d < DEPTH; d++) {
            let rows = wg_a[d * EDGE + slow];
            let columns = wg_b[d * EDGE + fast];
            sum[0] += multiply(rows.x, columns);
            sum[1] += multiply(rows.y, columns);
            sum[2] += multiply(rows.z, columns);
            sum[3] += multiply(rows.w, columns);
        }
        workgroupBarrier();
    }

    for (var r = 0u; r < 4u; r++) {
        let row = first_row + 4u * slow + r;
        for (var i = 0u; i < 4u; i++) {
            let column = first_column + 4u * fast + i;
            if row < params.m && column < params.n {
                c[(batch * params.m + row) * params.n + column] = Elem(params.alpha * sum[r][i] + column_bias(column));
            }
        }
    }
}
