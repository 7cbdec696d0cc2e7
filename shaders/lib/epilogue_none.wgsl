// Products are stored as they are. Alternative: epilogue_steps.
fn finished(value: vec4<f32>, other: vec4<f32>) -> vec4<f32> {
    return value;
}
