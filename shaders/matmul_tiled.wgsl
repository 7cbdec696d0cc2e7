// matmul_tiled: c = f(alpha · a · b + bias), or f(alpha · a · bᵀ + bias), for each product of a batch.
//
//   a  [.., m, k] (left_*)    b  [.., k, n], or [.., n, k] when TRANSPOSED_B (right_*)    bias  [n]    c  [.., m, n]
//   f  steps that may take a residual, [.., m, n] (epilogue_*, residual_*)
//   Batch axes are broadcast by strides of zero.
//
// A workgroup of 16 × 16 lanes owns TILE × TILE elements of one product, a lane FOURS × FOURS blocks of 4 × 4 that are 64 rows
// and columns apart, so that neighbouring lanes read neighbouring vectors. K is walked in steps of DEPTH; both factors are
// staged in workgroup memory with k slowest, so that a lane reads its rows and its columns as vectors. A step is one vector of
// each factor and lane, and the next one's are on their way while a step is multiplied. Past the edges factors read as zero,
// and nothing is written.
// With ANNIHILATE a zero in a makes its product zero even where b is NaN or infinite: attention weights of masked keys.

const TRANSPOSED_B: bool = false; // host
const ANNIHILATE: bool = false; // host
const FOURS: u32 = 1u; // host
alias Elem = f32; // host
alias Factor = f32; // as which factors are staged

const EDGE: u32 = 16u;
const TILE: u32 = 4u * FOURS * EDGE;
const DEPTH: u32 = 16u / FOURS;
const STRIDE: u32 = TILE / 4u + 1u; // vectors from one k to the next; one more keeps columns of the staging off one bank
const_assert FOURS == 1u || FOURS == 2u;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(3) var<storage, read_write> c: array<Elem>;

var<workgroup> wg_a: array<vec4<f32>, DEPTH * STRIDE>; // [k][row / 4]
var<workgroup> wg_b: array<vec4<f32>, DEPTH * STRIDE>; // [k][column / 4]

fn products(rows: vec4<f32>, columns: vec4<f32>) -> mat4x4<f32> {
    if ANNIHILATE {
        return outer_where(rows, columns);
    }
    return outer(rows, columns);
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
    // What this lane stages: four elements along k of one row, and of b four along n where that is how it is stored.
    let along = lane / (DEPTH / 4u);
    let deep = 4u * (lane % (DEPTH / 4u));
    let b_k = lane / (TILE / 4u);
    let b_four = lane % (TILE / 4u);

    var sums_00 = mat4x4<f32>();
    var sums_01 = mat4x4<f32>();
    var sums_10 = mat4x4<f32>();
    var sums_11 = mat4x4<f32>();
    var left = left_four(start.a, first_row + along, deep);
    var right: vec4<f32>;
    if TRANSPOSED_B {
        right = right_four(start.b, first_column + along, deep);
    } else {
        right = right_four(start.b, b_k, first_column + 4u * b_four);
    }
    for (var k = 0u; k < params.k; k += DEPTH) {
        for (var i = 0u; i < 4u; i++) {
            wg_a[(deep + i) * STRIDE + along / 4u][along % 4u] = left[i];
        }
        if TRANSPOSED_B {
            for (var i = 0u; i < 4u; i++) {
                wg_b[(deep + i) * STRIDE + along / 4u][along % 4u] = right[i];
            }
        } else {
            wg_b[b_k * STRIDE + b_four] = right;
        }
        workgroupBarrier();
        left = left_four(start.a, first_row + along, k + DEPTH + deep);
        if TRANSPOSED_B {
            right = right_four(start.b, first_column + along, k + DEPTH + deep);
        } else {
            right = right_four(start.b, k + DEPTH + b_k, first_column + 4u * b_four);
        }
        for (var d = 0u; d < DEPTH; d++) {
            let rows_0 = wg_a[d * STRIDE + slow];
            let columns_0 = wg_b[d * STRIDE + fast];
            sums_00 += products(rows_0, columns_0);
            if FOURS == 2u {
                let rows_1 = wg_a[d * STRIDE + EDGE + slow];
                let columns_1 = wg_b[d * STRIDE + EDGE + fast];
                sums_01 += products(rows_0, columns_1);
                sums_10 += products(rows_1, columns_0);
                sums_11 += products(rows_1, columns_1);
            }
        }
        workgroupBarrier();
    }

    // Sums that are looked up by a loop's counter would not stay in registers above.
    var results: array<mat4x4<f32>, 4>;
    results[0] = sums_00;
    results[1] = sums_01;
    results[2] = sums_10;
    results[3] = sums_11;
    for (var i = 0u; i < 4u * FOURS * FOURS; i++) {
        let row = first_row + i / 4u / FOURS * 4u * EDGE + 4u * slow + i % 4u;
        let column = first_column + i / 4u % FOURS * 4u * EDGE + 4u * fast;
        if row < params.m && column < params.n {
            let last = params.n - 1u;
            let columns = min(column + vec4(0u, 1u, 2u, 3u), vec4(last));
            let places = (batch * params.m + row) * params.n + columns;
            let bias = vec4(
                column_bias(columns.x), column_bias(columns.y), column_bias(columns.z), column_bias(columns.w));
            let others = vec4(residual(places.x), residual(places.y), residual(places.z), residual(places.w));
            let values = finished(params.alpha * results[i / 4u][i % 4u] + bias, others);
            for (var j = 0u; j < min(4u, params.n - column); j++) {
                c[places[j]] = Elem(values[j]);
            }
        }
    }
}
