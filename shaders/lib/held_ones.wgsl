// Which elements of a row a lane holds: every TEAM-th, so that neighbouring lanes read neighbours.
// Alternative: held_fours.
alias Cell = Elem;

// Of the lane's four number k; past the row's end, the last one.
fn elements(member: u32, k: u32) -> vec4<u32> {
    return min((4u * k + vec4(0u, 1u, 2u, 3u)) * TEAM + member, vec4(params.length - 1u));
}

fn are_inside(member: u32, k: u32) -> vec4<bool> {
    return (4u * k + vec4(0u, 1u, 2u, 3u)) * TEAM + member < vec4(params.length);
}

fn loaded(start: u32, member: u32, k: u32) -> vec4<f32> {
    let at = start + elements(member, k);
    return vec4(f32(x[at.x]), f32(x[at.y]), f32(x[at.z]), f32(x[at.w]));
}

fn store(start: u32, member: u32, k: u32, value: vec4<f32>) {
    let at = start + elements(member, k);
    let inside = are_inside(member, k);
    if inside.x {
        y[at.x] = Cell(value.x);
    }
    if inside.y {
        y[at.y] = Cell(value.y);
    }
    if inside.z {
        y[at.z] = Cell(value.z);
    }
    if inside.w {
        y[at.w] = Cell(value.w);
    }
}
