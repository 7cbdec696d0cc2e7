//! Every file in `tests/onnx` and in the folder named by `REGARD_ONNX`, on every device, fused and unfused, against what it
//! expects; an operator that this crate lacks, or lacks in part, is a counted skip; and files that are broken.

mod common;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use common::{Subject, Verdict, each_device, run};
use libtest_mimic::{Completion, Trial};
use regard::nn::onnx::OnnxNode;
use regard::{Device, HostTensor, Plan, Strategy};

fn main() -> ExitCode {
    let mut trials = Vec::new();
    for path in files() {
        let name = path.file_stem().expect("a file has a name").to_string_lossy().into_owned();
        match OnnxNode::open(&path) {
            Err(error) => trials.push(Trial::test(name, move || Err(error.into()))),
            Ok(node) if !node.is_known() => {
                let reason = format!("operator {}", node.operator);
                trials.push(Trial::ignorable_test(name, move || Ok(Completion::ignored_with(reason))));
            }
            Ok(node) => match node.lacking() {
                Some(reason) => {
                    trials.push(Trial::ignorable_test(name, move || Ok(Completion::ignored_with(reason))));
                }
                None => trials.extend(node_trials(&name, &node)),
            },
        }
    }
    trials.extend(broken_files());
    trials.extend(controls());
    run(trials)
}

fn files() -> Vec<PathBuf> {
    let folders = [Some(own_folder()), std::env::var_os("REGARD_ONNX").map(PathBuf::from)];
    let mut files = Vec::new();
    for folder in folders.into_iter().flatten() {
        let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        let paths = entries.map(|entry| entry.expect("a readable folder").path());
        files.extend(paths.filter(|path| path.extension().is_some_and(|ending| ending == "safetensors")));
    }
    assert!(!files.is_empty(), "there are no node files");
    files.sort();
    files
}

fn own_folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/onnx")
}

fn node_trials(name: &str, node: &OnnxNode) -> Vec<Trial> {
    let trials = node.strategies().iter().map(|&strategy| {
        let name = format!("{name}/{strategy:?}");
        // Heads too wide for the fused kernel are no failure of it, and no pass either.
        let refused = node.graph(strategy).err().map(|error| error.to_string());
        match refused.filter(|error| error.contains("the fused kernel takes")) {
            Some(reason) => {
                vec![Trial::ignorable_test(name, move || Ok(Completion::ignored_with(reason)))]
            }
            None => {
                let node = node.clone();
                each_device(&name, move |subject| check(subject, &node, strategy))
            }
        }
    });
    trials.flatten().collect()
}

fn check(subject: &Subject, node: &OnnxNode, strategy: Strategy) -> Verdict {
    let built = node.graph(strategy)?;
    let mut plan = Plan::new(&subject.device, &built.graph)?;
    let inputs: Vec<_> = built.inputs.iter().map(|(name, value)| (name.as_str(), value)).collect();
    let comparisons = node.compare(&plan.run(&inputs)?)?;
    for (what, comparison) in &comparisons {
        if !comparison.passed() {
            return Err(format!("{}: {what}, {strategy:?} on {}: {comparison}", node.path, subject.name).into());
        }
    }
    if comparisons.is_empty() { Err("the file expects nothing".into()) } else { Ok(Completion::Completed) }
}

/// An output that is off, and how: the comparison must say so.
type Off = (&'static str, &'static str, fn(f32) -> f32);

const OFF: &[Off] = &[
    (PAST, "Y", |y| y + 1e-4),
    (PAST, "Y", |_| f32::NAN),
    (PAST, "present_key", |key| f32::from_bits(key.to_bits() ^ 1)),
    (HALF, "Y", |y| y + 2e-2),
    (GATHER, "y", |y| f32::from_bits(y.to_bits() ^ 1)),
    (LSTM, "Y_h", |h| h + 2e-3),
    (LOG_SOFTMAX, "y", |y| y * 1.002),
    (EINSUM, "y", |y| y * 1.002),
    (FLEX_CAP, "Y", |y| y + 1e-3),
    (FLEX_POSITIONS, "Y", |y| y + 1e-3),
    (ARG_MAX, "z", |z| z + 1.0),
    (TRAINING, "output_var", |variance| variance * 1.002),
];

fn controls() -> impl Iterator<Item = Trial> {
    OFF.iter().enumerate().map(|(number, &(file, output, change))| {
        Trial::test(format!("control/{number}/{file}/{output}"), move || {
            let node = OnnxNode::open(&own_folder().join(format!("{file}.safetensors")))?;
            let built = node.graph(Strategy::Auto)?;
            let inputs: Vec<_> = built.inputs.iter().map(|(name, value)| (name.as_str(), value)).collect();
            let mut outputs = Plan::new(&Device::cpu(), &built.graph)?.run(&inputs)?;
            let value = &outputs[output];
            let mut data: Vec<f32> = value.to_f64().into_iter().map(|x| x as f32).collect();
            let last = data.last_mut().ok_or("the output is empty")?;
            *last = change(*last);
            let changed = HostTensor::f32(value.shape(), data)?.cast(value.desc().dtype);
            outputs.insert(output.into(), changed);
            let failed = node.compare(&outputs)?.into_iter().filter(|(_, comparison)| !comparison.passed());
            let failed: Vec<String> = failed.map(|(what, _)| what).collect();
            if failed.iter().any(|what| what.ends_with(&format!(".{output}"))) {
                return Ok(());
            }
            Err(format!("the changed `{output}` passed; what failed is {failed:?}").into())
        })
    })
}

/// A file, what is replaced in its header by text that is no longer, and what the message must say.
type Broken = (&'static str, &'static str, &'static str, &'static [&'static str]);

const CAUSAL: &str = "test_attention_3d_causal";
const WINDOW: &str = "test_attention_local_window";
const PAST: &str = "test_attention_4d_with_past_and_present";
const HALF: &str = "test_attention_4d_causal_fp16";
const NONPAD: &str = "test_attention_4d_gqa_causal_nonpad_decode";
const MATMUL: &str = "test_matmul_2d";
const SOFTMAX: &str = "test_softmax_axis_0";
const LAYER_NORM: &str = "test_layer_normalization_3d_axis1_epsilon";
const RMS_NORM: &str = "test_rms_normalization_3d_axis0_epsilon";
const ROTARY: &str = "test_rotary_embedding_with_interleaved_rotary_dim";
const SCATTER: &str = "test_tensorscatter_circular";
const LINEAR: &str = "test_linear_attention_gated";
const RELU: &str = "test_relu";
const ELU: &str = "test_elu";
const GELU: &str = "test_gelu_tanh_1";
const SWIGLU: &str = "test_swiglu";
const LOG_SOFTMAX: &str = "test_logsoftmax_axis_0";
const BATCH_NORM: &str = "test_batchnorm_epsilon";
const TRAINING: &str = "test_batchnorm_example_training_mode";
const GEMM: &str = "test_gemm_all_attributes";
const CONV: &str = "test_conv_with_strides_padding";
const CONV_SAME: &str = "test_conv_with_autopad_same";
const MAX_POOL: &str = "test_maxpool_2d_ceil";
const AVERAGE_POOL: &str = "test_averagepool_2d_ceil_last_window_starts_on_pad";
const ARG_MAX: &str = "test_maxpool_with_argmax_2d_precomputed_pads";
const GLOBAL_POOL: &str = "test_globalaveragepool";
const EINSUM: &str = "test_einsum_transpose";
const EINSUM_DIAGONAL: &str = "test_einsum_batch_diagonal";
const EINSUM_PRODUCT: &str = "test_einsum_batch_matmul_bfloat16";
const FLEX_HEADS: &str = "test_flexattention_gqa";
const FLEX_CAP: &str = "test_flexattention_soft_cap";
const FLEX_POSITIONS: &str = "test_flexattention_relative_positional";
const GATHER: &str = "test_gather_negative_indices";
const LSTM: &str = "test_lstm_with_peepholes";
const LSTM_BOTH: &str = "test_lstm_bidirectional";
const GRU: &str = "test_gru_seq_length";

const BROKEN: &[Broken] = &[
    (CAUSAL, "\"case\"", "\"cage\"", &["no `case`"]),
    (
        CAUSAL,
        "\\\"op_type\\\": \\\"Attention\\\"",
        "\\\"op_type\\\": \\\"Attrition\\\"",
        &["Attrition", "known are Attention"],
    ),
    (CAUSAL, "\\\"opset\\\": 23", "\\\"opset\\\": 22", &["opset 22", "23 to 25"]),
    (CAUSAL, "is_causal", "is_casual", &["Attention-23 has no attribute `is_casual`"]),
    (CAUSAL, "\\\"is_causal\\\": 1", "\\\"is_causal\\\": 2", &["`is_causal` is 2", "0 to 1"]),
    (CAUSAL, "\\\"q_num_heads\\\": 3", "\\\"q_num_heads\\\": 5", &["5 heads"]),
    (CAUSAL, "\\\"q_num_heads\\\": 3", "\\\"q_num_heads\\\": 0", &["`q_num_heads` is 0"]),
    (CAUSAL, "\"in.K\"", "\"in.X\"", &["`in.X` is in no input slot"]),
    (CAUSAL, "\"out.Y\"", "\"in.Q2\"", &["`in.Q2` is in no input slot"]),
    (WINDOW, "\\\"opset\\\": 25", "\\\"opset\\\": 24", &["Attention-24 has no attribute `left_window_size`"]),
    (WINDOW, "\\\"left_window_size\\\": 2", "\\\"left_window_size\\\":-2", &["`left_window_size` is -2", "from -1"]),
    (PAST, "\\\"past_key\\\", \\\"past_value\\\"]", "\\\"past_key\\\", \\\"\\\"          ]", &["past_value"]),
    (NONPAD, "\\\"opset\\\": 24", "\\\"opset\\\": 23", &["Attention-23 has no slot for `nonpad_kv_seqlen`"]),
    (NONPAD, "\"I64\"", "\"F64\"", &["nonpad_kv_seqlen is F64"]),
    (MATMUL, r#"{}, \"domain\": \"\","#, r#"{\"a\": 1},"#, &["MatMul-13 has no attribute `a` = 1"]),
    (MATMUL, r#"\"opset\": 13"#, r#"\"opset\": 0"#, &["MatMul of opset 0", "1 and later"]),
    (MATMUL, r#"[\"a\", \"b\"]"#, r#"[\"a\"]"#, &["`in.b` is in no input slot"]),
    (MATMUL, r#"[\"a\", \"b\"]"#, r#"[\"\", \"b\"]"#, &["`in.a` is in no input slot"]),
    (MATMUL, r#"in.a": {"dtype": "F32""#, r#"in.a": {"dtype": "I32""#, &["`B` is F32, and `A` is I32"]),
    (MATMUL, r#""shape": [3, 4]"#, r#""shape": [4, 3]"#, &["matmul: a has 3 columns", "b has 4 rows"]),
    (MATMUL, r#""shape": [4, 3]"#, r#""shape": [12]"#, &["matmul: a has 4 columns", "b has 12 rows"]),
    (SOFTMAX, r#"\"axis\""#, r#"\"exis\""#, &["Softmax-13 has no attribute `exis` = 0"]),
    (SOFTMAX, r#"\"axis\": 0"#, r#"\"axis\": 3"#, &["`axis` is 3", "-3 to 2"]),
    (
        SOFTMAX,
        r#"[\"x\"], \"name\": \"test_softmax_axis_0\""#,
        r#"[\"x\", \"x\"]"#,
        &["Softmax-13 has no slot for `x`"],
    ),
    (SOFTMAX, r#""F32", "shape": [3, 4, 5]"#, r#""U8", "shape": [240]"#, &["`input` is U8; f32, f16 or bf16"]),
    (LAYER_NORM, r#"\"opset\": 17"#, r#"\"opset\": 16"#, &["opset 16", "17 and later"]),
    (LAYER_NORM, r#"0.10000000149011612"#, r#"\"little\""#, &["`epsilon` is \"little\""]),
    (LAYER_NORM, r#"0.10000000149011612"#, r#"-1"#, &["layer_norm: epsilon is -1"]),
    (LAYER_NORM, r#"epsilon\": 0.10000000149011612"#, r#"stash_type\": 11"#, &["`stash_type` is 11", "[1, 16]"]),
    (LAYER_NORM, r#"\"axis\": 1"#, r#"\"axis\": 4"#, &["`axis` is 4", "-3 to 2"]),
    (LAYER_NORM, r#""shape": [3, 5]"#, r#""shape": [5, 3]"#, &["`B` [5, 3] does not broadcast to X [2, 3, 5]"]),
    (LAYER_NORM, r#""dtype": "F32""#, r#""dtype": "I32""#, &["`B` is I32, and `X` is F32"]),
    (LAYER_NORM, r#"[\"Y\", \"Mean\", \"InvStdDev\"]"#, r#"[\"Y\",\"M\",\"I\",\"J\"]"#, &["no slot for `J`"]),
    (RMS_NORM, r#"\"opset\": 23"#, r#"\"opset\": 22"#, &["opset 22", "23 and later"]),
    (RMS_NORM, r#"0.10000000149011612"#, r#"-1"#, &["rms_norm: epsilon is -1"]),
    (RMS_NORM, r#"\"axis\": 0"#, r#"\"axis\": 1"#, &["`scale` [2, 3, 5] does not broadcast to rows [3, 5]"]),
    (RMS_NORM, r#"epsilon"#, r#"epselon"#, &["RMSNormalization-23 has no attribute `epselon`"]),
    (RMS_NORM, r#""dtype": "F32""#, r#""dtype": "U32""#, &["`in.W` is U32"]),
    (ROTARY, r#"\"interleaved\": 1"#, r#"\"interleaved\": 2"#, &["`interleaved` is 2", "0 to 1"]),
    (ROTARY, r#"_dim\": 4"#, r#"_dim\": 6"#, &["`cos_cache` is [50, 2]", "6 / 2 angles"]),
    (ROTARY, r#"[2, 4, 3, 8]"#, r#"[8, 3, 8]"#, &["X of rank 3 needs the attribute `num_heads`"]),
    (ROTARY, r#"[2, 4, 3, 8]"#, r#"[24, 8]"#, &["X [24, 8] has rank 2"]),
    (ROTARY, r#"interleaved\": 1"#, r#"num_heads\": 3"#, &["X [2, 4, 3, 8] has not 3 heads"]),
    (ROTARY, r#""I64""#, r#""F64""#, &["`position_ids` is F64"]),
    (ROTARY, r#""shape": [2, 3]"#, r#""shape": [3, 2]"#, &["`position_ids` has shape [3, 2], [2, 3] was expected"]),
    (SCATTER, r#"circular\"},"#, r#"circulaq\"},"#, &["`mode` is \"circulaq\"", "linear"]),
    (SCATTER, r#"\"circular\"}"#, r#"\"linear\"}"#, &["write_indices holds", "2 rows go into a cache of 4"]),
    (SCATTER, r#"\"mode\": \"circular\""#, r#"\"axis\": 0"#, &["axis 0, which is the batch"]),
    (SCATTER, r#"[2, 1, 2, 5]"#, r#"[1, 2, 2, 5]"#, &["update f32 [1, 2, 2, 5] does not fit cache"]),
    (SCATTER, r#""I64""#, r#""F64""#, &["`write_indices` is F64"]),
    (SCATTER, r#"\"opset\": 24"#, r#"\"opset\": 23"#, &["opset 23", "24 and later"]),
    (LINEAR, r#"\"gated\""#, r#"\"delta\""#, &["`delta` excludes the input `decay`"]),
    (LINEAR, r#"\"gated\""#, r#"\"grted\""#, &["`update_rule` is \"grted\""]),
    (LINEAR, r#"\"update_rule\": \"gated\""#, r#"\"scale\": 1.0"#, &["`gated_delta` needs the input `beta`"]),
    (LINEAR, r#"kv_num_heads\": 4"#, r#"kv_num_heads\": 3"#, &["4 heads are no multiple of 3"]),
    (LINEAR, r#"kv_num_heads"#, r#"kv_num_haeds"#, &["attribute `kv_num_heads` is missing"]),
    (LINEAR, r#""shape": [2, 4, 32]"#, r#""shape": [2, 8, 16]"#, &["decay is f32 [2, 8, 16]"]),
    (LINEAR, r#"\"decay\"]"#, r#"\"\"]"#, &["`in.decay` is in no input slot"]),
    (LINEAR, r#"\"opset\": 27"#, r#"\"opset\": 26"#, &["opset 26", "27 and later"]),
    (RELU, r#"\"opset\": 14"#, r#"\"opset\": 5"#, &["opset 5", "6 and later"]),
    (RELU, r#"{}, \"domain\": \"\","#, r#"{\"a\": 1},"#, &["Relu-14 has no attribute `a` = 1"]),
    (RELU, r#"in.x": {"dtype": "F32""#, r#"in.x": {"dtype": "I32""#, &["`X` is I32; f32, f16 or bf16"]),
    (ELU, r#"2.0"#, r#"[]"#, &["`alpha` is []", "a number"]),
    (GELU, r#"\"tanh\""#, r#"\"tame\""#, &["`approximate` is \"tame\"", "none"]),
    (SWIGLU, r#"in.b": {"dtype": "F32", "shape": [2, 4]"#, r#"in.b": {"dtype": "F32", "shape": [4, 2]"#, &["`B` has"]),
    (LOG_SOFTMAX, r#"\"axis\": 0"#, r#"\"axis\": 3"#, &["`axis` is 3", "-3 to 2"]),
    (
        BATCH_NORM,
        r#"15, \"outputs\": [\"y\"], \"rtol\": 0.001"#,
        r#"13, \"outputs\": [\"y\", \"m\"]"#,
        &["BatchNormalization: the training form of opset 13"],
    ),
    (BATCH_NORM, r#"epsilon\": 0.009999999776482582"#, r#"training_mode\": 2"#, &["`training_mode` is 2", "0 to 1"]),
    (BATCH_NORM, r#"epsilon"#, r#"epselon"#, &["BatchNormalization-15 has no attribute `epselon`"]),
    (BATCH_NORM, r#"[\"y\"], \"rtol\": 0.001"#, r#"[\"y\", \"mean2\"]"#, &["no slot for `mean2`"]),
    (BATCH_NORM, r#""dtype": "F32", "shape": [3]"#, r#""dtype":"F32","shape":[1,3]"#, &["[1, 3], [3] was expected"]),
    (GEMM, r#"\"transA\": 1"#, r#"\"transA\": 2"#, &["`transA` is 2", "0 to 1"]),
    (GEMM, r#"[4, 3]"#, r#"[2, 6]"#, &["matmul: a has 2 columns"]),
    (GEMM, r#"[4, 3]"#, r#"[12]"#, &["`A` [12] has rank 1, 2 was expected"]),
    (GEMM, r#"[1, 5]"#, r#"[5, 1]"#, &["`C` [5, 1] does not broadcast to [3, 5]"]),
    (
        CONV,
        r#"\"kernel_shape\": [3, 3]"#,
        r#"\"kernel_shape\": [3, 2]"#,
        &["`kernel_shape` is [3, 2]", "W is [1, 1, 3"],
    ),
    (CONV, r#"\"strides\": [2, 2]"#, r#"\"strides\": [0, 2]"#, &["`strides` is 0, an integer from 1"]),
    (CONV, r#"\"strides\": [2, 2]"#, r#"\"strides\": [2]"#, &["`strides` is [2], a list of 2 integers"]),
    (CONV, r#"\"strides\": [2, 2]"#, r#"\"group\": 3"#, &["conv2d", "3"]),
    (CONV, r#"\"pads\""#, r#"\"pad\""#, &["Conv-22 has no attribute `pad`"]),
    (CONV, r#"[1, 1, 7, 5]"#, r#"[7, 5]"#, &["`X` [7, 5] has rank 2, 3 or 4"]),
    (CONV, r#"[1, 1, 7, 5]"#, r#"[1, 7, 5]"#, &["X [1, 7, 5] and W [1, 1, 3, 3] differ in rank"]),
    (CONV, r#"[1, 1, 7, 5]"#, r#"[1,1,1,7,5]"#, &["Conv: 3 spatial axes"]),
    (CONV_SAME, r#"SAME_LOWER"#, r#"SOME_LOWER"#, &["`auto_pad` is \"SOME_LOWER\""]),
    (CONV_SAME, r#"\"strides\": [2, 2]"#, r#"\"pads\":[0,0,0,0]"#, &["SAME_LOWER, which excludes `pads`"]),
    (MAX_POOL, r#"kernel_shape"#, r#"kernel_shade"#, &["`kernel_shape` is missing"]),
    (MAX_POOL, r#"\"opset\": 22"#, r#"\"opset\": 9"#, &["MaxPool-9 has no attribute `ceil_mode`"]),
    (MAX_POOL, r#"[\"y\"], \"rtol\": 0.001"#, r#"[\"y\",\"z\",\"w\"]"#, &["MaxPool-22 has no slot for `w`"]),
    (ARG_MAX, r#"\"opset\": 22"#, r#"\"opset\": 7"#, &["MaxPool-7 has no slot for `z`"]),
    (MAX_POOL, r#""F32", "shape": [1, 1, 4, 4]"#, r#""I32", "shape": [1, 1, 4, 4]"#, &["`X` is I32"]),
    (MAX_POOL, r#"[1, 1, 4, 4]"#, r#"[1,1,1,4,4]"#, &["`kernel_shape` is [3,3], a list of 3"]),
    (AVERAGE_POOL, r#"count_include_pad\": 1"#, r#"count_include_pad\": 2"#, &["`count_include_pad` is 2", "0 to 1"]),
    (AVERAGE_POOL, r#"[1, 3, 2, 2]"#, r#"[12]"#, &["`X` [12] has rank 1, 3 to 5"]),
    (AVERAGE_POOL, r#""F32", "shape": [1, 3, 2, 2]"#, r#""U8","shape": [1, 3, 4,4]"#, &["`X` is U8; f32, f16 or bf16"]),
    (GLOBAL_POOL, r#"[1, 3, 5, 5]"#, r#"[75]"#, &["`X` [75] has rank 1", "batch and channels"]),
    (EINSUM, "ij->ji", "ij->jk", &["`equation` is `ij->jk`, which does not fit ranks [2]"]),
    (EINSUM, "ij->ji", "ijk->i", &["`equation` is `ijk->i`, which does not fit ranks [2]"]),
    (EINSUM, r#"\"equation\""#, r#"\"equatiom\""#, &["`equation` is missing"]),
    (EINSUM, r#"\"ij->ji\""#, "2", &["`equation` is 2, a text was expected"]),
    (EINSUM, r#"[\"x\"]"#, "[]", &["`in.x` is in no input slot"]),
    (EINSUM_DIAGONAL, "[3, 5, 5]", "[3,25,1]", &["einsum: axes `i` have sizes 25 and 1"]),
    (EINSUM_PRODUCT, "[5, 3, 4]", "[5, 4, 3]", &["einsum: axes `j` have sizes 3 and 4"]),
    (EINSUM_PRODUCT, r#"[\"x\", \"y\"]"#, r#"[\"\", \"y\"]"#, &["`in.x` is in no input slot"]),
    (FLEX_HEADS, "[2, 2, 6, 16]", "[2, 3, 4, 16]", &["attention: value has kv_heads 2, key has 3"]),
    (FLEX_HEADS, "[2, 8, 4, 16]", "[2, 32, 16]", &["`Q` [2, 32, 16] has rank 3, 4 was expected"]),
    (FLEX_CAP, r#"\"Div\""#, r#"\"Dim\""#, &["FlexAttention: `score_mod`: `Dim` of the score"]),
    (FLEX_POSITIONS, r#"\"Range\""#, r#"\"Ring\""#, &["FlexAttention: `score_mod`: `Ring` of [Integer, Int"]),
    (FLEX_POSITIONS, r#"[\"scores_out\"]}}"#, r#"[\"rel_pos\"]}}"#, &["the result is not the score"]),
    (FLEX_CAP, r#"score_mod\":"#, r#"prob_mod\":"#, &["FlexAttention: `prob_mod` is not supported"]),
    (FLEX_CAP, "score_mod", "scare_mod", &["FlexAttention-1 has no attribute `scare_mod`"]),
    (GATHER, r#""I64""#, r#""F64""#, &["`indices` is F64, i32 or i64"]),
    (GATHER, r#"\"axis\": 0"#, r#"\"axis\": 1"#, &["`axis` is 1", "-1 to 0"]),
    (GATHER, r#"\"opset\": 13"#, r#"\"opset\": 10"#, &["indices holds -9", "size 10"]),
    (GATHER, r#""dtype": "F32", "shape": [10]"#, r#""dtype":"F32","shape":[2,5]"#, &["indices holds -9", "size 2"]),
    (LSTM, r#"\"hidden_size\": 3"#, r#"\"hidden_size\": 4"#, &["`W` has shape [1, 12, 4], [1, 16, 4] was"]),
    (LSTM, r#"\"hidden_size\": 3"#, r#"\"clip\": 1.5"#, &["LSTM-22 has no attribute `clip` = 1.5"]),
    (LSTM, r#"\"hidden_size\": 3"#, r#"\"input_forget\":1"#, &["`input_forget` is 1, coupled gates"]),
    (LSTM, r#"\"hidden_size\": 3"#, r#"\"direction\":\"\""#, &["`direction` is \"\"", "forward"]),
    (LSTM, r#"\"hidden_size\": 3"#, r#"\"layout\": 1"#, &["`sequence_lens` has shape [2], [1] was"]),
    (LSTM, r#""I32""#, r#""F32""#, &["`sequence_lens` is F32, i32 was expected"]),
    (LSTM, r#"in.P": {"dtype": "F32", "shape": [1, 9]"#, r#"in.P": {"dtype": "F32", "shape": [9, 1]"#, &["`P` has"]),
    (LSTM_BOTH, r#"[2, 12, 2]"#, r#"[2, 2, 12]"#, &["`W` has shape [2, 2, 12], [2, 12, 2] was"]),
    (LSTM_BOTH, r#"[2, 12, 2]"#, r#"[48]"#, &["`W` has shape [48], [2, 12, 2] was"]),
    (
        GRU,
        r#"\"hidden_size\": 5"#,
        r#"\"activations\":[]"#,
        &["`activations` is []; Sigmoid or HardSigmoid, then Tanh"],
    ),
    (GRU, r#"[2, 3, 3]"#, r#"[6, 3]"#, &["X is [6, 3], R is [1, 15, 5]"]),
    (GRU, r#"\"opset\": 22"#, r#"\"opset\": 6"#, &["opset 6", "7 and later"]),
    (GRU, r#"[1, 30]"#, r#"[30]"#, &["`B` has shape [30], [1, 30] was"]),
];

fn broken_files() -> impl Iterator<Item = Trial> {
    BROKEN.iter().enumerate().map(|(number, (file, from, to, messages))| {
        Trial::test(format!("broken/{file}/{to}"), move || {
            // Spaces after it, as the header keeps its length.
            let to = format!("{to:<0$}", from.len());
            assert_eq!(from.len(), to.len());
            let mut bytes = std::fs::read(own_folder().join(format!("{file}.safetensors")))?;
            let at = bytes.windows(from.len()).position(|window| window == from.as_bytes());
            let at = at.ok_or_else(|| format!("the file does not say {from}"))?;
            bytes[at..at + from.len()].copy_from_slice(to.as_bytes());
            let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("broken_onnx_{number}.safetensors"));
            std::fs::write(&path, bytes)?;
            let outcome = OnnxNode::open(&path).and_then(|node| node.graph(Strategy::Auto));
            let Err(error) = outcome else { return Err("the damaged file was accepted".into()) };
            let message = error.to_string();
            let wanted = [path.to_str().expect("the path is UTF-8")].into_iter().chain(messages.iter().copied());
            match wanted.into_iter().find(|part| !message.contains(part)) {
                Some(part) => Err(format!("`{message}` does not say `{part}`").into()),
                None => Ok(()),
            }
        })
    })
}
