// One step or two change each element before it is stored, `other` being the residual's. Their codes are constants, so that
// compilers keep one case of all. With chain. Alternative: epilogue_none.
const STEP_0: u32 = 0u; // host
const STEP_1: u32 = 0u; // host
const NO_STEP: u32 = 0xffffffffu;

fn stepped(code: u32, step: vec4<u32>, value: vec4<f32>, residual: vec4<f32>) -> vec4<f32> {
    if code == NO_STEP {
        return value;
    }
    let p = bitcast<f32>(step.z);
    if code < FIRST_BINARY {
        return select(mapped(code, p, bitcast<f32>(step.w), value), value, are_nan(value));
    }
    let other = select(vec4(p), residual, step.y == 1u);
    let result = combined(code, value, other);
    return select(select(result, other, are_nan(other)), value, are_nan(value));
}

fn finished(value: vec4<f32>, other: vec4<f32>) -> vec4<f32> {
    return stepped(STEP_1, params.epilogue[1], stepped(STEP_0, params.epilogue[0], value, other), other);
}
