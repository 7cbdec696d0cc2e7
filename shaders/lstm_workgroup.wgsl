// lstm_workgroup: the recurrence of an LSTM over steps whose input has been projected.
//
//   gates      [batch, steps, 4 · HIDDEN]   x · W + b: input, forget, candidate and output gate
//   recurrent  [HIDDEN, 4 · HIDDEN]
//   sequence   [batch, steps, HIDDEN]       the state h after each step
//   last_h, last_c  [batch, HIDDEN]
//
//   i = σ(gates_i + h · R_i + p_i · c)      f = σ(gates_f + h · R_f + p_f · c)      g = tanh(gates_g + h · R_g)
//   c ← f · c + i · g                       o = σ(gates_o + h · R_o + p_o · c)      h ← o · tanh(c)
//
// A workgroup owns one sequence. A lane owns the units lane, lane + LANES, …: their four gates and their c, which stay
// in its registers, while h is in workgroup memory because every unit reads all of it. Neighbouring lanes read
// neighbouring columns of R. A masked step keeps h and c. Steps past the sequence's length do not take place, and their
// rows are zero; backwards, the last step of the length is the first.

const HIDDEN: u32 = 64u; // host
const LANES: u32 = 64u; // host
const HARD_SIGMOID: bool = false; // host
alias ElemX = f32; // host
alias ElemR = f32; // host
alias Elem = f32; // host

@group(0) @binding(5) var<storage, read_write> last_c: array<Elem>;

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let batch = workgroup.x + workgroup.y * workgroups.x;
    if batch >= params.batch {
        return;
    }
    var c: array<f32, UNITS>;
    var h: array<f32, UNITS>; // what the next step reads
    for (var n = 0u; n < UNITS; n++) {
        let unit = lane + n * LANES;
        if unit < HIDDEN {
            c[n] = initial_c(batch * HIDDEN + unit);
            wg_h[unit] = initial_h(batch * HIDDEN + unit);
        }
    }
    workgroupBarrier();

    let length = step_count(batch);
    var begun = false;
    for (var count = 0u; count < params.steps; count++) {
        let live = count < length;
        let step = select(count, length - 1u - count, live && params.backwards != 0u);
        let row = batch * params.steps + step;
        let computed = live && !is_masked(row);
        begun = begun || computed;
        for (var n = 0u; n < UNITS; n++) {
            let unit = lane + n * LANES;
            if unit >= HIDDEN {
                continue;
            }
            h[n] = wg_h[unit];
            if computed {
                let start = row * 4u * HIDDEN + unit;
                var sum = vec4<f32>();
                for (var k = 0u; k < HIDDEN; k++) {
                    let at = k * 4u * HIDDEN + unit;
                    let weights = vec4(
                        f32(recurrent[at]),
                        f32(recurrent[at + HIDDEN]),
                        f32(recurrent[at + 2u * HIDDEN]),
                        f32(recurrent[at + 3u * HIDDEN]),
                    );
                    sum += wg_h[k] * weights;
                }
                sum += vec4(
                    f32(gates[start]),
                    f32(gates[start + HIDDEN]),
                    f32(gates[start + 2u * HIDDEN]),
                    f32(gates[start + 3u * HIDDEN]),
                );
                let i = gate(sum.x + peephole(unit) * c[n]);
                let f = gate(sum.y + peephole(HIDDEN + unit) * c[n]);
                c[n] = f * c[n] + i * bent(sum.z);
                h[n] = gate(sum.w + peephole(2u * HIDDEN + unit) * c[n]) * bent(c[n]);
            }
            // A masked step repeats the last output, of which there is none before the first step that was computed.
            let repeats = live && begun && params.repeat_masked != 0u;
            sequence[row * HIDDEN + unit] = Elem(select(0.0, h[n], computed || repeats));
        }
        workgroupBarrier();
        for (var n = 0u; n < UNITS; n++) {
            let unit = lane + n * LANES;
            if unit < HIDDEN {
                wg_h[unit] = h[n];
            }
        }
        workgroupBarrier();
    }

    for (var n = 0u; n < UNITS; n++) {
        let unit = lane + n * LANES;
        if unit < HIDDEN {
            last_h[batch * HIDDEN + unit] = Elem(wg_h[unit]);
            last_c[batch * HIDDEN + unit] = Elem(c[n]);
        }
    }
}
