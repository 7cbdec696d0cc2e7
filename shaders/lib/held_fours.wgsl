// Which elements of a row a lane holds: fours of neighbours, one load each. Starts and length are multiples of 4.
// Alternative: held_ones.
alias Cell = vec4<Elem>;

// Of the lane's four number k; past the row's end, the last ones.
fn elements(member: u32, k: u32) -> vec4<u32> {
    return 4u * min(k * TEAM + member, params.length / 4u - 1u) + vec4(0u, 1u, 2u, 3u);
}

fn are_inside(member: u32, k: u32) -> vec4<bool> {
    return vec4(k * TEAM + member < params.length / 4u);
}

fn loaded(start: u32, member: u32, k: u32) -> vec4<f32> {
    return vec4<f32>(x[start / 4u + min(k * TEAM + member, params.length / 4u - 1u)]);
}

fn store(start: u32, member: u32, k: u32, value: vec4<f32>) {
    let at = k * TEAM + member;
    if at < params.length / 4u {
        y[start / 4u + at] = Cell(value);
    }
}
