// matmul_coop: c = f(alpha · a · b + bias), or f(alpha · a · bᵀ + bias), for each product of a batch, on cooperative matrices.
//
//   a  [.., m, k] (left_*)    b  [.., k, n], or [.., n, k] when TRANSPOSED_B (right_*)    bias  [n]    c  [.., m, n]
//   f  steps that may take a residual, [.., m, n] (epilogue_*, residual_*)
//   Batch axes are broadcast by strides of zero. The matrices multiply f16 and add up in f32 (matrices_*).
//
// Four subgroups, two by two, own TILE × TILE elements of one product, each BLOCK × BLOCK matrices of sums. K is walked in
// steps of DEPTH; both factors are staged in workgroup memory as they are stored, rows PAD apart from multiples of the banks.
// Past the edges factors read as zero, and nothing is written. Sums leave through workgroup memory, a matrix of each subgroup
// at a time, since only there elements can be told apart.
//
// A subgroup is as large as the device likes: LANES are enough for four of the largest, and where there are more they repeat
// what the first four do. The loop touches matrices by constant indices only, so that they stay in registers everywhere.

const TRANSPOSED_B: bool = false; // host
const ROUNDS: bool = false; // host
const BLOCK: u32 = 4u; // host
const LANES: u32 = 128u; // host
alias Elem = f16; // host
alias Factor = f16; // as which factors are staged

const SIDE: u32 = 2u;
const SPAN: u32 = BLOCK * EDGE;
const TILE: u32 = SIDE * SPAN;
const DEPTH: u32 = 32u;
const PAD: u32 = 8u;
const DEEP: u32 = (DEPTH + PAD) / 4u; // vectors from one row to the next where rows run along k
const WIDE: u32 = (TILE + PAD) / 4u; // and where they run along n
const_assert BLOCK == 2u || BLOCK == 4u;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(3) var<storage, read_write> c: array<Elem>;

var<workgroup> wg_a: array<vec4<f16>, TILE * DEEP>; // [row][k / 4]
var<workgroup> wg_b: array<vec4<f16>, max(TILE * DEEP, DEPTH * WIDE)>; // [column][k / 4] or [k][column / 4]
var<workgroup> wg_out: array<f32, SIDE * SIDE * EDGE * EDGE>; // [subgroup][row][column]

fn stage(start: Batch, first_row: u32, first_column: u32, k: u32, lane: u32) {
    for (var i = lane; i < TILE * DEPTH / 4u; i += LANES) {
        let row = i / (DEPTH / 4u);
        let d = i % (DEPTH / 4u);
        wg_a[row * DEEP + d] = left_four(start.a, first_row + row, k + 4u * d);
        if TRANSPOSED_B {
            wg_b[row * DEEP + d] = right_four(start.b, first_column + row, k + 4u * d);
        } else {
            let slow = i / (TILE / 4u);
            let fast = i % (TILE / 4u);
            wg_b[slow * WIDE + fast] = right_four(start.b, k + slow, first_column + 4u * fast);
        }
    }
}

// Writes what each subgroup has put into wg_out, the matrix in row i and column j of its block.
fn write(batch: u32, first_row: u32, first_column: u32, i: u32, j: u32, lane: u32) {
    workgroupBarrier();
    for (var at = lane; at < SIDE * SIDE * EDGE * EDGE; at += LANES) {
        let subgroup = at / (EDGE * EDGE);
        let row = first_row + subgroup / SIDE * SPAN + i * EDGE + at / EDGE % EDGE;
        let column = first_column + subgroup % SIDE * SPAN + j * EDGE + at % EDGE;
        if row < params.m && column < params.n {
            let place = (batch * params.m + row) * params.n + column;
            let value = params.alpha * wg_out[at] + column_bias(column);
            c[place] = Elem(finished(vec4(value), vec4(residual(place))).x);
        }
    }
    workgroupBarrier();
}

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    @builtin(subgroup_id) subgroup: u32,
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
    let mine = subgroup % (SIDE * SIDE);
    let out = mine * EDGE * EDGE;
    let a_start = mine / SIDE * SPAN * DEEP;
    let b_start = mine % SIDE * select(SPAN / 4u, SPAN * DEEP, TRANSPOSED_B);

    // Row by row of a block of 4 × 4, of which a block of 2 × 2 uses the upper left.
    var sums: array<Sums, 16>;
    for (var k = 0u; k < params.k; k += DEPTH) {
        stage(start, first_row, first_column, k, lane);
        workgroupBarrier();
        let deep = min(params.k - k, DEPTH);
        for (var d = 0u; d < deep; d += EDGE) {
            var right: array<Right, 4>;
            if TRANSPOSED_B {
                let b_at = b_start + d / 4u;
                right[0] = coopLoad<Right>(&wg_b[b_at], DEEP);
                right[1] = coopLoad<Right>(&wg_b[b_at + EDGE * DEEP], DEEP);
                if BLOCK == 4u {
                    right[2] = coopLoad<Right>(&wg_b[b_at + 2u * EDGE * DEEP], DEEP);
                    right[3] = coopLoad<Right>(&wg_b[b_at + 3u * EDGE * DEEP], DEEP);
                }
            } else {
                let b_at = b_start + d * WIDE;
                right[0] = coopLoadT<Right>(&wg_b[b_at], WIDE);
                right[1] = coopLoadT<Right>(&wg_b[b_at + EDGE / 4u], WIDE);
                if BLOCK == 4u {
                    right[2] = coopLoadT<Right>(&wg_b[b_at + 2u * EDGE / 4u], WIDE);
                    right[3] = coopLoadT<Right>(&wg_b[b_at + 3u * EDGE / 4u], WIDE);
                }
            }
            let a_at = a_start + d / 4u;
            let left_0 = coopLoadT<Left>(&wg_a[a_at], DEEP);
            let left_1 = coopLoadT<Left>(&wg_a[a_at + EDGE * DEEP], DEEP);
            sums[0] = coopMultiplyAdd(left_0, right[0], sums[0]);
            sums[1] = coopMultiplyAdd(left_0, right[1], sums[1]);
            sums[4] = coopMultiplyAdd(left_1, right[0], sums[4]);
            sums[5] = coopMultiplyAdd(left_1, right[1], sums[5]);
            if BLOCK == 4u {
                let left_2 = coopLoadT<Left>(&wg_a[a_at + 2u * EDGE * DEEP], DEEP);
                let left_3 = coopLoadT<Left>(&wg_a[a_at + 3u * EDGE * DEEP], DEEP);
                sums[2] = coopMultiplyAdd(left_0, right[2], sums[2]);
                sums[3] = coopMultiplyAdd(left_0, right[3], sums[3]);
                sums[6] = coopMultiplyAdd(left_1, right[2], sums[6]);
                sums[7] = coopMultiplyAdd(left_1, right[3], sums[7]);
                sums[8] = coopMultiplyAdd(left_2, right[0], sums[8]);
                sums[9] = coopMultiplyAdd(left_2, right[1], sums[9]);
                sums[10] = coopMultiplyAdd(left_2, right[2], sums[10]);
                sums[11] = coopMultiplyAdd(left_2, right[3], sums[11]);
                sums[12] = coopMultiplyAdd(left_3, right[0], sums[12]);
                sums[13] = coopMultiplyAdd(left_3, right[1], sums[13]);
                sums[14] = coopMultiplyAdd(left_3, right[2], sums[14]);
                sums[15] = coopMultiplyAdd(left_3, right[3], sums[15]);
            }
        }
        workgroupBarrier();
    }

    coopStoreT(sums[0], &wg_out[out], EDGE);
    write(batch, first_row, first_column, 0u, 0u, lane);
    coopStoreT(sums[1], &wg_out[out], EDGE);
    write(batch, first_row, first_column, 0u, 1u, lane);
    coopStoreT(sums[4], &wg_out[out], EDGE);
    write(batch, first_row, first_column, 1u, 0u, lane);
    coopStoreT(sums[5], &wg_out[out], EDGE);
    write(batch, first_row, first_column, 1u, 1u, lane);
    if BLOCK == 4u {
        coopStoreT(sums[2], &wg_out[out], EDGE);
        write(batch, first_row, first_column, 0u, 2u, lane);
        coopStoreT(sums[3], &wg_out[out], EDGE);
        write(batch, first_row, first_column, 0u, 3u, lane);
        coopStoreT(sums[6], &wg_out[out], EDGE);
        write(batch, first_row, first_column, 1u, 2u, lane);
        coopStoreT(sums[7], &wg_out[out], EDGE);
        write(batch, first_row, first_column, 1u, 3u, lane);
        coopStoreT(sums[8], &wg_out[out], EDGE);
        write(batch, first_row, first_column, 2u, 0u, lane);
        coopStoreT(sums[9], &wg_out[out], EDGE);
        write(batch, first_row, first_column, 2u, 1u, lane);
        coopStoreT(sums[10], &wg_out[out], EDGE);
        write(batch, first_row, first_column, 2u, 2u, lane);
        coopStoreT(sums[11], &wg_out[out], EDGE);
        write(batch, first_row, first_column, 2u, 3u, lane);
        coopStoreT(sums[12], &wg_out[out], EDGE);
        write(batch, first_row, first_column, 3u, 0u, lane);
        coopStoreT(sums[13], &wg_out[out], EDGE);
        write(batch, first_row, first_column, 3u, 1u, lane);
        coopStoreT(sums[14], &wg_out[out], EDGE);
        write(batch, first_row, first_column, 3u, 2u, lane);
        coopStoreT(sums[15], &wg_out[out], EDGE);
        write(batch, first_row, first_column, 3u, 3u, lane);
    }
}
