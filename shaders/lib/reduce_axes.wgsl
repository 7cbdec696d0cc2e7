// Where the elements of a set to be reduced are: params hold kept and reduced axes, (size, stride, 0, 0) each.
fn kept_offset(output: u32) -> u32 {
    var rest = output;
    var offset = 0u;
    for (var axis = 0u; axis < params.kept_axes; axis++) {
        offset += rest % params.kept[axis].x * params.kept[axis].y;
        rest /= params.kept[axis].x;
    }
    return offset;
}

fn reduced_offset(i: u32) -> u32 {
    var rest = i;
    var offset = 0u;
    for (var axis = 0u; axis + 1u < params.reduced_axes; axis++) {
        offset += rest % params.reduced[axis].x * params.reduced[axis].y;
        rest /= params.reduced[axis].x;
    }
    // The slowest axis takes what is left.
    return offset + rest * params.reduced[max(params.reduced_axes, 1u) - 1u].y;
}

fn result(partial: Partial) -> f32 {
    // Not a constant: compilers refuse those that are NaN.
    var bits = params.empty;
    return select(finished(partial), bitcast<f32>(bits), params.count == 0u);
}
