// Blocks of 4 × 4 sums in registers. A column of a matrix is a row of the block.

// Products of four rows' numbers with four columns'.
fn outer(rows: vec4<f32>, columns: vec4<f32>) -> mat4x4<f32> {
    return mat4x4<f32>(rows.x * columns, rows.y * columns, rows.z * columns, rows.w * columns);
}

// The same, where a number of a row that is zero takes no part.
fn outer_where(rows: vec4<f32>, columns: vec4<f32>) -> mat4x4<f32> {
    return mat4x4<f32>(
        select(rows.x * columns, vec4<f32>(), rows.x == 0.0),
        select(rows.y * columns, vec4<f32>(), rows.y == 0.0),
        select(rows.z * columns, vec4<f32>(), rows.z == 0.0),
        select(rows.w * columns, vec4<f32>(), rows.w == 0.0),
    );
}

// Each row by a factor of its own.
fn scaled(matrix: mat4x4<f32>, factors: vec4<f32>) -> mat4x4<f32> {
    return mat4x4<f32>(matrix[0] * factors.x, matrix[1] * factors.y, matrix[2] * factors.z, matrix[3] * factors.w);
}
