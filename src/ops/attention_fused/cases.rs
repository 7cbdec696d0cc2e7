//! Sizes around the tiles, head dimensions from 1 to 512, grouped heads, every mask kind, every storage and layout, scores of
//! four magnitudes, poison, zero sizes.

mod joined;

mod halves;

use super::AttentionFused;
use crate::case::{Case, CaseInput, Values};
use crate::compare::Tolerance;
use crate::mask::{Causal, Fill};
use crate::ops::mask_cases::{MaskCase, mask_cases, serving_cases};
use crate::ops::operands::{Layout, Operands};
use crate::ops::{EPSILON_BF16, EPSILON_F16, EPSILON_F32};
use crate::precision::Precision;
use crate::tensor::{Dtype, HostTensor};

/// Odd, even and in fours, narrow and wide, alike and not; every second of them is of all kinds too.
const HEAD_DIMS: [(usize, usize); 12] = [
    (1, 1),
    (3, 5),
    (31, 33),
    (40, 40),
    (80, 12),
    (64, 128),
    (128, 129),
    (256, 256),
    (257, 9),
    (12, 300),
    (511, 512),
    (512, 512),
];

pub(in crate::ops) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in [Dtype::F32, Dtype::F16] {
        let plain = |sizes: [usize; 7], deviation| case(dtype, sizes, MaskCase::none(), deviation);
        for (seq_q, seq_kv) in [(1, 1), (7, 31), (8, 32), (9, 33), (31, 129), (32, 64), (33, 7), (65, 101)] {
            cases.push(plain([1, 2, 2, seq_q, seq_kv, 16, 16], 1.0));
        }
        // Rows and keys of the other tiles, and one more or less.
        for (seq_q, seq_kv) in [(15, 17), (16, 16), (17, 15), (63, 65), (64, 128), (127, 63), (128, 64), (129, 127)] {
            cases.push(plain([1, 1, 1, seq_q, seq_kv, 16, 16], 1.0));
        }
        // Scores of about 1e-3, 1, 30 and 1e4.
        for deviation in [0.0316, 1.0, 5.48, 100.0] {
            cases.push(plain([1, 2, 1, 65, 130, 64, 64], deviation));
        }
        for (head_dim, head_dim_v) in HEAD_DIMS.into_iter().step_by(if dtype == Dtype::F32 { 1 } else { 2 }) {
            cases.push(plain([1, 1, 1, 35, 37, head_dim, head_dim_v], 1.0));
        }
        cases.push(plain([2, 6, 2, 33, 40, 24, 24], 1.0));
        // Enough tiles for tall ones on up to eight threads.
        cases.push(plain([2, 8, 4, 600, 37, 8, 8], 1.0));
        cases.push(plain([2, 4, 1, 1, 70, 16, 20], 30.0));
        cases.push(plain([1, 2, 2, 33, 33, 64, 64], 1e-3));
        for sizes in [[1, 2, 2, 0, 5, 8, 8], [2, 2, 2, 3, 0, 8, 8], [1, 1, 1, 3, 4, 0, 8], [1, 1, 1, 3, 4, 8, 0]] {
            cases.push(plain(sizes, 1.0));
        }
        // Each mask at each of these sizes is a pipeline to compile, for each technique: masks do not depend on the storage, and little
        // on the tile. So there all of them, and elsewhere one in some.
        let masked: &[([usize; 7], usize)] = match dtype {
            Dtype::F32 => {
                &[([2, 4, 2, 35, 70, 20, 24], 1), ([1, 2, 1, 70, 35, 16, 16], 1), ([1, 2, 2, 5, 41, 16, 16], 3)]
            }
            _ => &[([1, 2, 1, 70, 35, 16, 16], 4)],
        };
        for &(sizes, one_in) in masked {
            let masks = mask_cases([sizes[0], sizes[1], sizes[3], sizes[4]]).into_iter().skip(1).step_by(one_in);
            cases.extend(masks.map(|mask| case(dtype, sizes, mask, 1.0)));
        }
    }
    for sizes in [[1, 4, 2, 70, 41, 12, 16], [1, 1, 1, 2, 5, 8, 8]] {
        for mask in serving_cases([sizes[1], sizes[3], sizes[4]]) {
            let mut case = case(Dtype::F32, sizes, mask, 1.0);
            case.inputs[1..3].iter_mut().for_each(|kv| kv.desc.shape[0] = 3);
            cases.push(case);
        }
    }
    let f32_case = |sizes, mask: MaskCase, deviation| case(Dtype::F32, sizes, mask, deviation);
    cases.push(f32_case(
        [1, 1, 1, 33, 33, 64, 64],
        MaskCase::causal("causal top-left", Causal::TopLeft, Fill::Exclude),
        100.0,
    ));
    cases.push(f32_case([66_000, 1, 1, 1, 2, 1, 1], MaskCase::none(), 1.0));
    cases.extend(poisoned());
    cases.extend(stored());
    cases.extend(joined::cases());
    cases.extend(paged());
    cases.extend(past_the_lengths());
    cases.extend(returning());
    cases.push(hidden_tiles());
    cases.extend(halves::cases());
    cases
}

/// What is left to say about a problem whose sizes are given.
#[derive(Clone, Copy)]
pub(in crate::ops) struct Storage {
    pub q: Dtype,
    pub kv: Dtype,
    pub q_layout: Layout,
    pub kv_layout: Layout,
    /// Rows of a page, where there are pages.
    pub page_size: Option<usize>,
}

pub(in crate::ops) fn plain(dtype: Dtype) -> Storage {
    Storage { q: dtype, kv: dtype, q_layout: Layout::HeadsFirst, kv_layout: Layout::HeadsFirst, page_size: None }
}

fn case(dtype: Dtype, sizes: [usize; 7], mask: MaskCase, deviation: f32) -> Case {
    build(plain(dtype), sizes, mask, deviation, AttentionFused::default())
}

/// A case of `sizes` (batch, heads, kv_heads, seq_q, seq_kv, head_dim, head_dim_v); `options` says which further tensors there
/// are and what is returned.
fn build(storage: Storage, sizes: [usize; 7], mask: MaskCase, deviation: f32, options: AttentionFused) -> Case {
    let (name, op, inputs, tolerance) = parts(storage, sizes, mask, deviation, options);
    Case::new(name, op, inputs, tolerance)
}

/// What a case is made of: name, op, inputs and tolerance.
pub(in crate::ops) fn parts(
    storage: Storage,
    sizes: [usize; 7],
    mask: MaskCase,
    deviation: f32,
    options: AttentionFused,
) -> (String, AttentionFused, Vec<CaseInput>, Tolerance) {
    let [batch, heads, kv_heads, seq_q, seq_kv, head_dim, head_dim_v] = sizes;
    let MaskCase { name, rule, tensors } = mask;
    let scale = 1.0 / (head_dim.max(1) as f32).sqrt();
    let operands = Operands {
        q_layout: storage.q_layout,
        kv_layout: storage.kv_layout,
        has_scales: storage.kv == Dtype::I8,
        has_pages: storage.page_size.is_some(),
    };
    let op = AttentionFused { scale, rule, operands, ..options };
    let mut inputs =
        vec![CaseInput::normal(storage.q, &shape(storage.q_layout, [batch, heads, seq_q, head_dim]), deviation)];
    let pages = storage.page_size.map(|size| table(batch, seq_kv, size));
    let kv = [(head_dim, deviation), (head_dim_v, 1.0)].map(|(width, deviation)| {
        let shape = match (&pages, storage.page_size) {
            (Some((_, count)), Some(size)) => vec![*count, size, kv_heads, width],
            _ => shape(storage.kv_layout, [batch, kv_heads, seq_kv, width]),
        };
        (shape, width, deviation)
    });
    if storage.kv == Dtype::I8 {
        let rows = if storage.page_size.is_some() { None } else { storage.kv_layout.heads_of_row() };
        let quantised =
            kv.map(|(shape, width, deviation)| quantised(&shape, width, deviation, rows.unwrap_or(kv_heads)));
        let [[k, k_scales], [v, v_scales]] = quantised;
        inputs.extend([k, v, k_scales, v_scales]);
    } else {
        inputs.extend(kv.map(|(shape, _, deviation)| CaseInput::normal(storage.kv, &shape, deviation)));
    }
    inputs.extend(pages.map(|(table, _)| given(table)));
    inputs.extend(options.has_sinks.then(|| sinks(heads)));
    inputs.extend(tensors);
    let described = describe(&storage, &options);
    let name = format!(
        "{described} b{batch} h{heads}/{kv_heads} {seq_q}x{seq_kv} d{head_dim}/{head_dim_v} of {deviation} {name}"
    );
    // A score has deviation² as its own; it is off by about √head_dim roundings of a term of that size, and each weight
    // relatively by as much. The sums over the keys and exp add a few roundings, storage one; what kernels read is exact.
    // Where rounding to storage goes the other way than the reference's, the difference is twice a rounding.
    let rounded = match storage.q {
        Dtype::F16 => 2.0 * EPSILON_F16,
        Dtype::BF16 => 2.0 * EPSILON_BF16,
        _ => 0.0,
    };
    let score = f64::from(deviation).powi(2) * 5.0 * (2.0 + (head_dim as f64).sqrt());
    // Rounded to f16, a term of a score is off by two roundings; of those √head_dim add up, which the scale takes away again.
    // Weights and values are rounded once more each.
    let halves = match options.precision {
        Precision::Full => 0.0,
        Precision::Half => (2.0 * f64::from(deviation).powi(2) * 5.0 * 2.0 + 4.0) * EPSILON_F16,
    };
    (name, op, inputs, Tolerance::of_scale((2.0 * score + 32.0) * EPSILON_F32 + rounded + halves))
}

fn describe(storage: &Storage, options: &AttentionFused) -> String {
    let mut words = storage.q.to_string();
    if storage.kv != storage.q {
        words += &format!(" kv {}", storage.kv);
    }
    for (role, layout) in [("q", storage.q_layout), ("kv", storage.kv_layout)] {
        match layout {
            Layout::HeadsFirst => {}
            Layout::SeqFirst => words += &format!(" {role} seq-first"),
            Layout::Merged { .. } => words += &format!(" {role} merged"),
            Layout::Joined { .. } => words += &format!(" {role} joined"),
        }
    }
    if let Some(size) = storage.page_size {
        words += &format!(" pages of {size}");
    }
    words += if options.precision == Precision::Half { " half" } else { "" };
    words += if options.has_sinks { " sinks" } else { "" };
    words + if options.returns_lse { " lse" } else { "" }
}

fn shape(layout: Layout, [batch, heads, seq, width]: [usize; 4]) -> Vec<usize> {
    match layout {
        Layout::HeadsFirst => vec![batch, heads, seq, width],
        Layout::SeqFirst => vec![batch, seq, heads, width],
        Layout::Merged { .. } => vec![batch, seq, heads * width],
        Layout::Joined { heads, kv_heads } => vec![batch, seq, (heads + 2 * kv_heads) * width],
    }
}

fn given(tensor: HostTensor) -> CaseInput {
    CaseInput { desc: tensor.desc().clone(), values: Values::Given(tensor) }
}

/// Levels over the whole range and scales that give about this deviation; every seventh row is zero with a scale of zero.
fn quantised(shape: &[usize], width: usize, deviation: f32, heads_of_row: usize) -> [CaseInput; 2] {
    let rows = shape.iter().product::<usize>().checked_div(width).unwrap_or(0);
    let scale_shape = match shape {
        [batch, seq, _] => vec![*batch, *seq, heads_of_row],
        _ => shape[..shape.len() - 1].to_vec(),
    };
    let zero = |row: usize| row % 7 == 6;
    let level = |at: usize| if zero(at / width) { 0 } else { (at * 89 % 255) as i32 as i16 - 127 };
    let levels = (0..rows * width).map(|at| level(at) as i8).collect();
    let scale = |row: usize| if zero(row) { 0.0 } else { deviation * (1.0 + (row % 5) as f32) / 200.0 };
    let levels = HostTensor::i8(shape, levels).expect("as many as the shape says");
    let scales = HostTensor::f32(&scale_shape, (0..scale_shape.iter().product()).map(scale).collect());
    [given(levels), given(scales.expect("as many as the shape says"))]
}

/// A table that takes pages in an order of its own and leaves every third out, and how many pages there are.
fn table(batch: usize, seq_kv: usize, size: usize) -> (HostTensor, usize) {
    assert!(seq_kv.is_multiple_of(size), "pages are whole");
    let per_sequence = seq_kv / size;
    let wanted = batch * per_sequence;
    let page = |entry: usize| (wanted - 1 - entry) * 3 / 2;
    let table = (0..wanted).map(|entry| page(entry) as u32).collect();
    (HostTensor::u32(&[batch, per_sequence], table).expect("an entry for each page"), wanted * 3 / 2 + 1)
}

/// From far below the scores to above them, and one that is none.
fn sinks(heads: usize) -> CaseInput {
    let some = [0.5, f32::NEG_INFINITY, 4.0, -90.0];
    given(HostTensor::f32(&[heads], (0..heads).map(|head| some[head % 4]).collect()).expect("one for each head"))
}

/// Every storage in every layout, with and without masks, at widths that fill words and widths that do not.
fn stored() -> Vec<Case> {
    let (f32, f16, bf16, i8) = (Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::I8);
    let merged = |heads| Layout::Merged { heads };
    let layouts = |heads, kv_heads| {
        [
            (Layout::HeadsFirst, Layout::HeadsFirst),
            (Layout::SeqFirst, Layout::SeqFirst),
            (merged(heads), merged(kv_heads)),
            (Layout::SeqFirst, merged(kv_heads)),
            (merged(heads), Layout::HeadsFirst),
        ]
    };
    let pairs =
        [(f32, f32), (bf16, bf16), (f32, i8), (bf16, i8), (bf16, f32), (f32, bf16), (f16, f16), (f16, i8), (f16, bf16)];
    let mut cases = Vec::new();
    for (q, kv) in pairs {
        for (at, (q_layout, kv_layout)) in layouts(4, 2).into_iter().enumerate() {
            if q == kv && q != bf16 && at == 0 {
                continue; // Among the others.
            }
            let storage = Storage { q, kv, q_layout, kv_layout, page_size: None };
            // Layouts only change strides: each problem needs one at least, and the first sees all.
            let problems =
                [([2, 4, 2, 35, 70, 20, 24], 0), ([2, 4, 2, 33, 37, 7, 5], 2), ([2, 4, 2, 3, 41, 9, 16], 17)];
            for (index, (sizes, mask)) in problems.into_iter().enumerate() {
                if index == 0 || at == 1 + index {
                    let mask = mask_cases([sizes[0], sizes[1], sizes[3], sizes[4]]).swap_remove(mask);
                    cases.push(build(storage, sizes, mask, 1.0, AttentionFused::default()));
                }
            }
        }
        let everything = mask_cases([1, 2, 65, 101]).pop().expect("there are masks");
        cases.push(build(
            Storage { q, kv, ..plain(q) },
            [1, 2, 1, 65, 101, 33, 31],
            everything,
            1.0,
            AttentionFused::default(),
        ));
    }
    cases
}

/// Pages of every storage, with lengths and without; what no table names is NaN where the storage has one.
fn paged() -> Vec<Case> {
    let (f32, f16, bf16, i8) = (Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::I8);
    let mut cases = Vec::new();
    for (q, kv) in [(f32, f32), (f16, f16), (bf16, bf16), (f32, i8), (f16, i8)] {
        for (q_layout, size) in [(Layout::HeadsFirst, 16), (Layout::Merged { heads: 4 }, 20), (Layout::SeqFirst, 80)] {
            let storage = Storage { page_size: Some(size), q_layout, kv, ..plain(q) };
            for (sizes, mask) in
                [([2, 4, 2, 35, 80, 20, 24], 0), ([3, 4, 4, 1, 160, 5, 7], 16), ([2, 4, 1, 9, 80, 16, 16], 18)]
            {
                let mask = mask_cases([sizes[0], sizes[1], sizes[3], sizes[4]]).swap_remove(mask);
                let mut case = build(storage, sizes, mask, 1.0, AttentionFused::default());
                poison_pages(&mut case);
                cases.push(case);
            }
        }
    }
    cases
}

/// NaN in rows of a cache past the lengths.
fn past_the_lengths() -> Vec<Case> {
    let pairs =
        [(Dtype::F32, Dtype::F32), (Dtype::BF16, Dtype::BF16), (Dtype::F32, Dtype::I8), (Dtype::F16, Dtype::F16)];
    let poisoned = |(q, kv)| {
        let (batch, heads, seq_q, seq_kv) = (2, 4, 35, 70);
        let storage = Storage { kv, kv_layout: Layout::SeqFirst, ..plain(q) };
        let mask = mask_cases([batch, heads, seq_q, seq_kv]).swap_remove(18);
        let mut case = build(storage, [batch, heads, 2, seq_q, seq_kv, 21, 23], mask, 1.0, AttentionFused::default());
        let drawn = case.draw();
        let lengths = drawn.last().and_then(HostTensor::as_u32).expect("the mask has lengths");
        // Of i8 the scales hold it.
        for input in if kv == Dtype::I8 { [3, 4] } else { [1, 2] } {
            let each = drawn[input].desc().len() / (batch * seq_kv);
            let mut data = drawn[input].to_f64();
            for (at, element) in data.iter_mut().enumerate() {
                let (sequence, key) = (at / each / seq_kv, at / each % seq_kv);
                *element = if key >= lengths[sequence] as usize { f64::NAN } else { *element };
            }
            let tensor = HostTensor::f64(drawn[input].shape(), data).expect("the shape is the input's");
            case.inputs[input] = given(tensor.cast(drawn[input].desc().dtype));
        }
        case.name += " poisoned";
        case
    };
    pairs.map(poisoned).to_vec()
}

/// NaN in pages and rows that no sequence has.
pub(in crate::ops) fn poison_pages(case: &mut Case) {
    let drawn = case.draw();
    let (shape, with_scales) = (drawn[1].shape().to_vec(), drawn[1].desc().dtype == Dtype::I8);
    let (count, size, kv_heads) = (shape[0], shape[1], shape[2]);
    let table = drawn[if with_scales { 5 } else { 3 }].as_u32().expect("a table").to_vec();
    let lengths = drawn.last().filter(|last| last.shape().len() == 1).and_then(HostTensor::as_u32);
    let per_sequence = table.len() / drawn[0].shape()[0];
    let mut used = vec![false; count * size];
    for (entry, &page) in table.iter().enumerate() {
        let (sequence, first) = (entry / per_sequence, entry % per_sequence * size);
        for row in 0..size {
            let exists = lengths.is_none_or(|lengths| first + row < lengths[sequence] as usize);
            used[page as usize * size + row] |= exists;
        }
    }
    // Of i8 the scales hold it.
    for input in if with_scales { [3, 4] } else { [1, 2] } {
        let width = drawn[input].desc().len() / (count * size * kv_heads);
        let mut data = drawn[input].to_f64();
        let poisoned = data.iter_mut().enumerate().filter(|(at, _)| !used[at / (width * kv_heads)]);
        poisoned.for_each(|(_, element)| *element = f64::NAN);
        let tensor = HostTensor::f64(drawn[input].shape(), data).expect("the shape is the input's");
        case.inputs[input] = given(tensor.cast(drawn[input].desc().dtype));
    }
    case.name += " poisoned";
}

/// The second output and sinks, with rows that see nothing, of every rank.
fn returning() -> Vec<Case> {
    let mut cases = Vec::new();
    let options = |has_sinks, returns_lse| AttentionFused { has_sinks, returns_lse, ..AttentionFused::default() };
    for (has_sinks, returns_lse) in [(true, false), (false, true), (true, true)] {
        let options = options(has_sinks, returns_lse);
        let masks = if has_sinks && returns_lse { &[0, 2, 4, 7, 11, 16, 21][..] } else { &[0, 4] };
        for sizes in [[2, 4, 2, 35, 70, 20, 24], [1, 2, 1, 70, 35, 16, 16], [2, 2, 2, 3, 0, 8, 8]] {
            let mask = |&mask: &usize| mask_cases([sizes[0], sizes[1], sizes[3], sizes[4].max(1)]).swap_remove(mask);
            let masks = masks.iter().map(mask).filter(|mask| sizes[4] > 0 || mask.tensors.is_empty());
            cases.extend(masks.map(|mask| build(plain(Dtype::F32), sizes, mask, 1.0, options)));
        }
        for dtype in [Dtype::F16, Dtype::BF16] {
            let lengths = mask_cases([2, 4, 35, 70]).swap_remove(16);
            cases.push(build(plain(dtype), [2, 4, 2, 35, 70, 20, 24], lengths, 1.0, options));
        }
        for (q_layout, kv_layout) in
            [(Layout::SeqFirst, Layout::SeqFirst), (Layout::Merged { heads: 4 }, Layout::Merged { heads: 2 })]
        {
            let storage = Storage { q_layout, kv_layout, ..plain(Dtype::F32) };
            cases.push(build(storage, [2, 4, 2, 35, 70, 20, 24], MaskCase::none(), 1.0, options));
        }
    }
    let no_value = build(plain(Dtype::F32), [1, 2, 2, 3, 4, 8, 0], MaskCase::none(), 1.0, options(true, true));
    let mut lower = build(plain(Dtype::F32), [1, 1, 1, 33, 7, 8, 8], MaskCase::none(), 1.0, options(true, true));
    lower.name += " rank 2";
    for input in &mut lower.inputs[..3] {
        input.desc.shape.drain(..2);
    }
    cases.extend([no_value, lower]);
    cases
}

/// A mask with key tiles that no query of a tile sees, and NaN there and in others that some do.
fn hidden_tiles() -> Case {
    let (seq_q, seq_kv) = (70, 200);
    let seen = |i: usize, j: usize| match j / 32 {
        0 => i < 40,
        1 | 4 => false,
        2 => i == 69 && j == 70,
        _ => (i + j).is_multiple_of(3),
    };
    let mask = (0..seq_q * seq_kv).map(|at| seen(at / seq_kv, at % seq_kv)).collect();
    let mask = HostTensor::bool(&[seq_q, seq_kv], mask).expect("an element for each pair");
    let mut rule = MaskCase::none();
    rule.rule.has_mask = true;
    rule.tensors.push(given(mask));
    rule.name = "hidden tiles";
    let mut case = case(Dtype::F32, [1, 1, 1, seq_q, seq_kv, 8, 8], rule, 1.0);
    for input in [1, 2] {
        let mut data = case.inputs[input].draw(input as u64).as_f32().expect("f32 was asked for").to_vec();
        (40..60).chain([130, 159]).for_each(|row| data[row * 8 + 3] = f32::NAN);
        case.inputs[input] = given(HostTensor::f32(&[1, 1, seq_kv, 8], data).expect("the shape is the input's"));
    }
    case
}

/// NaN and infinity in keys and values that only some rows may look at, by causality or by an additive mask.
fn poisoned() -> [Case; 2] {
    let above_the_diagonal = |at: usize| if at % 40 > at / 40 { f32::NEG_INFINITY } else { 0.25 };
    let data = (0..1600).map(above_the_diagonal).collect();
    let values = Values::Given(HostTensor::f32(&[40, 40], data).expect("40 x 40"));
    let name = "NaN and infinity in key and value";
    [
        MaskCase::causal(name, Causal::TopLeft, Fill::Exclude),
        MaskCase { name, ..MaskCase::none() }.bias(Dtype::F32, &[40, 40], values),
    ]
    .map(|mask| {
        let mut case = case(Dtype::F32, [1, 1, 1, 40, 40, 8, 8], mask, 1.0);
        case.name += if case.inputs.len() > 3 { ", additive" } else { ", causal" };
        for (input, row, value) in [(1, 38, f32::NAN), (2, 35, f32::NAN), (2, 37, f32::INFINITY)] {
            let mut data = case.inputs[input].draw(input as u64).as_f32().expect("f32 was asked for").to_vec();
            data[row * 8 + 3] = value;
            let tensor = HostTensor::f32(&[1, 1, 40, 8], data).expect("the shape is the input's");
            case.inputs[input].values = Values::Given(tensor);
        }
        case
    })
}
