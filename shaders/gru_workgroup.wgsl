// gru_workgroup: the recurrence of a GRU over steps whose input has been projected.
//
//   gates      [batch, steps, 3 · HIDDEN]   x · W + b: update, reset gate and candidate
//   recurrent  [HIDDEN, 3 · HIDDEN]
//   sequence   [batch, steps, HIDDEN]       the state h after each step
//   last_h     [batch, HIDDEN]
//
//   z = σ(gates_z + h · R_z)      r = σ(gates_r + h · R_r)
//   n = tanh(gates_n + r · (h · R_n + b_n)) with RESET_AFTER, else tanh(gates_n + (r · h) · R_n)
//   h ← (1 − z) · n + z · h
//
// A workgroup owns one sequence. A lane owns the units lane, lane + LANES, …; h is in workgroup memory because every
// unit reads all of it, and so is r · h. Neighbouring lanes read neighbouring columns of R. A masked step keeps h.
// Steps past the sequence's length do not take place, and their rows are zero; backwards, the last step of the length
// is the first.

const HIDDEN: u32 = 64u; // host
const LANES: u32 = 64u; // host
const HARD_SIGMOID: bool = false; // host
const RESET_AFTER: bool = true; // host
alias ElemX = f32; // host
alias ElemR = f32; // host
alias Elem = f32; // host

var<workgroup> wg_reset: array<f32, HIDDEN>; // r · h, or r · (h · R_n + b_n) of the unit itself

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
    for (var unit = lane; unit < HIDDEN; unit += LANES) {
        wg_h[unit] = initial_h(batch * HIDDEN + unit);
    }
    workgroupBarrier();

    var z: array<f32, UNITS>;
    var h: array<f32, UNITS>; // what the next step reads
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
            if unit >= HIDDEN || !computed {
                continue;
            }
            var sum = vec3<f32>();
            for (var k = 0u; k < HIDDEN; k++) {
                let at = k * 3u * HIDDEN + unit;
                sum.x += wg_h[k] * f32(recurrent[at]);
                sum.y += wg_h[k] * f32(recurrent[at + HIDDEN]);
                if RESET_AFTER {
                    sum.z += wg_h[k] * f32(recurrent[at + 2u * HIDDEN]);
                }
            }
            let start = row * 3u * HIDDEN + unit;
            z[n] = gate(sum.x + f32(gates[start]));
            let r = gate(sum.y + f32(gates[start + HIDDEN]));
            wg_reset[unit] = r * select(wg_h[unit], sum.z + candidate_bias(unit), RESET_AFTER);
        }
        workgroupBarrier();
        for (var n = 0u; n < UNITS; n++) {
            let unit = lane + n * LANES;
            if unit >= HIDDEN {
                continue;
            }
            h[n] = wg_h[unit];
            if computed {
                var sum = f32(gates[row * 3u * HIDDEN + 2u * HIDDEN + unit]);
                if RESET_AFTER {
                    sum += wg_reset[unit];
                } else {
                    for (var k = 0u; k < HIDDEN; k++) {
                        sum += wg_reset[k] * f32(recurrent[(k * 3u + 2u) * HIDDEN + unit]);
                    }
                }
                h[n] = (1.0 - z[n]) * bent(sum) + z[n] * h[n];
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

    for (var unit = lane; unit < HIDDEN; unit += LANES) {
        last_h[batch * HIDDEN + unit] = Elem(wg_h[unit]);
    }
}
