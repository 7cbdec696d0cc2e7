// matrix_chain_coop: y = steps times the sum of a's products with b, added one after the other, on cooperative matrices.
//
//   a  [8, EDGE, EDGE]    b  [EDGE, EDGE]    y  [groups, EDGE, EDGE]
//   The matrices multiply f16 and add up in f32 (matrices_*).
//
// A subgroup owns a group: eight sums that do not wait for each other, and that are joined at the end. A subgroup is as large as the
// device likes: LANES are enough for four of the largest, and where there are more they repeat what the first four do. Edges:
// subgroups past the last group repeat it too, as matrices want every subgroup of a workgroup to go the same way.

const LANES: u32 = 128u; // host

const SUBGROUPS: u32 = 4u;
const SIZE: u32 = EDGE * EDGE;

struct Params {
    groups: u32,
    steps: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> a: array<f16>;
@group(0) @binding(2) var<storage, read> b: array<f16>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(subgroup_id) subgroup: u32,
) {
    let first = (workgroup.x + workgroup.y * workgroups.x) * SUBGROUPS;
    if first >= params.groups {
        return;
    }
    let group = min(first + subgroup % SUBGROUPS, params.groups - 1u);
    let right = coopLoadT<Right>(&b[0], EDGE);
    let left_0 = coopLoadT<Left>(&a[0], EDGE);
    let left_1 = coopLoadT<Left>(&a[SIZE], EDGE);
    let left_2 = coopLoadT<Left>(&a[2u * SIZE], EDGE);
    let left_3 = coopLoadT<Left>(&a[3u * SIZE], EDGE);
    let left_4 = coopLoadT<Left>(&a[4u * SIZE], EDGE);
    let left_5 = coopLoadT<Left>(&a[5u * SIZE], EDGE);
    let left_6 = coopLoadT<Left>(&a[6u * SIZE], EDGE);
    let left_7 = coopLoadT<Left>(&a[7u * SIZE], EDGE);
    var sums: array<Sums, 8>;
    for (var step = 0u; step < params.steps; step++) {
        sums[0] = coopMultiplyAdd(left_0, right, sums[0]);
        sums[1] = coopMultiplyAdd(left_1, right, sums[1]);
        sums[2] = coopMultiplyAdd(left_2, right, sums[2]);
        sums[3] = coopMultiplyAdd(left_3, right, sums[3]);
        sums[4] = coopMultiplyAdd(left_4, right, sums[4]);
        sums[5] = coopMultiplyAdd(left_5, right, sums[5]);
        sums[6] = coopMultiplyAdd(left_6, right, sums[6]);
        sums[7] = coopMultiplyAdd(left_7, right, sums[7]);
    }
    let low = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    let high = (sums[4] + sums[5]) + (sums[6] + sums[7]);
    coopStoreT(low + high, &y[group * SIZE], EDGE);
}
