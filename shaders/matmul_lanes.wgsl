// matmul_lanes: c = f(alpha · a · b + bias), or f(alpha · a · bᵀ + bias), for each product of a batch. Tensors, steps and edges are
// those of matmul_tiled.
//
// A workgroup owns ROWS · LANES rows and COLUMNS columns of one product, a lane ROWS whole rows of them, and walks k four at a time:
// of a it takes its own four numbers of each row, and of b all lanes read the same numbers at the same time, from workgroup
// memory. That suits drivers that make lanes the elements of a host's vector registers, as attention_lanes says.
// With ANNIHILATE a zero in a makes its product zero even where b is NaN or infinite: attention weights of masked keys.

const TRANSPOSED_B: bool = false; // host
const ANNIHILATE: bool = false; // host
const PARTS: u32 = 16u; // host
alias Elem = f32; // host
alias Factor = f32; // as which factors are staged

const ROWS: u32 = 4u;
const LANES: u32 = 32u;
const COLUMNS: u32 = 4u * PARTS;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(3) var<storage, read_write> c: array<Elem>;

// [k][column / 4], or [column] with four k to a vector where b is transposed.
var<workgroup> wg_b: array<vec4<f32>, COLUMNS>;

// One number of a with four of b.
fn product(left: f32, right: vec4<f32>) -> vec4<f32> {
    if ANNIHILATE {
        return select(left * right, vec4<f32>(), left == 0.0);
    }
    return left * right;
}

// Four numbers of a with as many of b.
fn sum_of(left: vec4<f32>, right: vec4<f32>) -> f32 {
    if ANNIHILATE {
        return dot(left, select(right, vec4<f32>(), left == vec4<f32>()));
    }
    return dot(left, right);
}

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_id) id: vec3<u32>,
) {
    let tiles_n = (params.n + COLUMNS - 1u) / COLUMNS;
    let tiles_m = (params.m + ROWS * LANES - 1u) / (ROWS * LANES);
    let tile = workgroup.x + workgroup.y * workgroups.x;
    let batch = tile / (tiles_m * tiles_n);
    if batch >= params.batch_count {
        return;
    }
    let start = batch_offsets(batch);
    // This is id.x; see attention_lanes.
    let lane = u32(sqrt(f32(id.x * id.x)) + 0.5);
    let first_row = tile / tiles_n % tiles_m * (ROWS * LANES) + lane;
    let first_column = tile % tiles_n * COLUMNS;

    var sums: array<vec4<f32>, ROWS * PARTS>; // [row][column / 4]
    for (var k = 0u; k < params.k; k += 4u) {
        for (var i = lane; i < COLUMNS; i += LANES) {
            if TRANSPOSED_B {
                wg_b[i] = right_four(start.b, first_column + i, k);
            } else {
                wg_b[i] = right_four(start.b, k + i / PARTS, first_column + 4u * (i % PARTS));
            }
        }
        workgroupBarrier();
        var left: array<vec4<f32>, ROWS>;
        for (var r = 0u; r < ROWS; r++) {
            left[r] = left_four(start.a, first_row + r * LANES, k);
        }
        for (var p = 0u; p < PARTS; p++) {
            if TRANSPOSED_B {
                let b_0 = wg_b[4u * p];
                let b_1 = wg_b[4u * p + 1u];
                let b_2 = wg_b[4u * p + 2u];
                let b_3 = wg_b[4u * p + 3u];
                for (var r = 0u; r < ROWS; r++) {
                    let x = left[r];
                    sums[r * PARTS + p] += vec4(sum_of(x, b_0), sum_of(x, b_1), sum_of(x, b_2), sum_of(x, b_3));
                }
            } else {
                let b_0 = wg_b[p];
                let b_1 = wg_b[PARTS + p];
                let b_2 = wg_b[2u * PARTS + p];
                let b_3 = wg_b[3u * PARTS + p];
                for (var r = 0u; r < ROWS; r++) {
                    let x = left[r];
                    let at = r * PARTS + p;
                    sums[at] = sums[at] + product(x.x, b_0) + product(x.y, b_1) + product(x.z, b_2) + product(x.w, b_3);
                }
            }
        }
        workgroupBarrier();
    }

    for (var r = 0u; r < ROWS; r++) {
        let row = first_row + r * LANES;
        for (var p = 0u; p < PARTS; p++) {
            let column = first_column + 4u * p;
            if row < params.m && column < params.n {
                let columns = min(column + vec4(0u, 1u, 2u, 3u), vec4(params.n - 1u));
                let places = (batch * params.m + row) * params.n + columns;
                let bias = vec4(
                    column_bias(columns.x), column_bias(columns.y), column_bias(columns.z), column_bias(columns.w));
                let others = vec4(residual(places.x), residual(places.y), residual(places.z), residual(places.w));
                let values = finished(params.alpha * sums[r * PARTS + p] + bias, others);
                for (var j = 0u; j < min(4u, params.n - column); j++) {
                    c[places[j]] = Elem(values[j]);
                }
            }
        }
    }
}
