// matmul_vector: c = f(alpha · a · b + bias), or f(alpha · a · bᵀ + bias), for products whose left factor is one row.
//
//   a  [.., 1, k]    b  [.., k, n], or [.., n, k] when TRANSPOSED_B    bias  [n]    c  [.., 1, n]
//   f  steps that may take a residual, [.., 1, n] (epilogue_*, residual_*)
//   Batch axes are broadcast by strides of zero.
//
// Bound by reading b once. A workgroup owns COLUMNS columns of one product; SLICES lanes share each column's sum over k,
// and one lane adds the slices. Neighbouring lanes read neighbouring addresses of b.
// ANNIHILATE as in matmul_tiled.

const TRANSPOSED_B: bool = false; // host
const ANNIHILATE: bool = false; // host
alias ElemA = f32; // host
alias ElemB = f32; // host
alias Elem = f32; // host

const COLUMNS: u32 = 16u;
const SLICES: u32 = 16u;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> a: array<ElemA>;
@group(0) @binding(2) var<storage, read> b: array<ElemB>;
@group(0) @binding(3) var<storage, read_write> c: array<Elem>;

var<workgroup> wg_sums: array<f32, COLUMNS * SLICES>; // [slice][column]

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let groups = (params.n + COLUMNS - 1u) / COLUMNS;
    let tile = workgroup.x + workgroup.y * workgroups.x;
    let batch = tile / groups;
    if batch >= params.batch_count {
        return;
    }
    let start = batch_offsets(batch);
    let slot = select(lane % COLUMNS, lane / SLICES, TRANSPOSED_B);
    let slice = select(lane / COLUMNS, lane % SLICES, TRANSPOSED_B);
    let column = tile % groups * COLUMNS + slot;

    var sum = 0.0;
    if column < params.n {
        for (var k = slice; k < params.k; k += SLICES) {
            let left = f32(a[start.a + k]);
            let right = f32(b[start.b + select(k * params.n + column, column * params.k + k, TRANSPOSED_B)]);
            if !ANNIHILATE || left != 0.0 {
                sum += left * right;
            }
        }
    }
    wg_sums[slice * COLUMNS + slot] = sum;
    workgroupBarrier();

    let out_column = tile % groups * COLUMNS + lane;
    if lane < COLUMNS && out_column < params.n {
        var total = 0.0;
        for (var s = 0u; s < SLICES; s++) {
            total += wg_sums[s * COLUMNS + lane];
        }
        let place = batch * params.n + out_column;
        let value = params.alpha * total + column_bias(out_column);
        c[place] = Elem(finished(vec4(value), vec4(residual(place))).x);
    }
}
