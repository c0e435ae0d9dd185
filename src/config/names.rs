//! What the settings of TRL, axolotl and LLaMA-Factory are called here.
//!
//! One table for the page docs/configuration.md, for the refusal of an unknown key, and for `warpo init --from`.

/// Whose name it is: a letter each in [`Name::tools`].
pub(super) const TOOLS: [(char, &str); 3] = [('T', "TRL"), ('A', "axolotl"), ('F', "LLaMA-Factory")];

/// A setting of another tool.
pub(super) struct Name {
    /// As it is written there.
    pub(super) name: &'static str,
    /// `T` for TRL, `A` for axolotl, `F` for LLaMA-Factory.
    pub(super) tools: &'static str,
    /// The key here, if there is one.
    pub(super) key: Option<&'static str>,
    /// How the two differ, or why there is none; empty where they are the same.
    pub(super) words: &'static str,
}

impl Name {
    /// `TRL's and axolotl's`.
    pub(super) fn owners(&self) -> String {
        let owners =
            TOOLS.iter().filter(|(letter, _)| self.tools.contains(*letter)).map(|(_, name)| format!("{name}'s"));
        owners.collect::<Vec<_>>().join(" and ")
    }
}

/// The same setting under another name.
const fn same(name: &'static str, tools: &'static str, key: &'static str) -> Name {
    Name { name, tools, key: Some(key), words: "" }
}

/// A setting that is near to one here.
const fn near(name: &'static str, tools: &'static str, key: &'static str, words: &'static str) -> Name {
    Name { name, tools, key: Some(key), words }
}

/// A setting that there is not.
const fn none(name: &'static str, tools: &'static str, words: &'static str) -> Name {
    Name { name, tools, key: None, words }
}

const ROWS: &str = "rows a step are rows a device x accumulation steps x processes; `batch.tokens` bounds the memory";
const LENGTHS: &str =
    "the limits of prompt and response are apart (`data.max_prompt_tokens`, `data.max_response_tokens`)";
const FOLDER: &str = "a file on this machine; nothing is downloaded";
const OUT: &str = "the run folder is named on the command line: `warpo train RUN.toml --out DIR`";
const ADAPTER: &str = "there are no adapters: all weights are trained";
const QUANTIZED: &str = "there are no quantized bases: weights are f32 or bf16";
const MEMORY: &str = "the plan of the memory sees to it (`train.recompute`); a smaller `batch.tokens` takes less";
const PACKED: &str = "rows are always packed, without padding";
const PROCESSES: &str = "a run has one device";
const RESUME: &str = "a run goes on by `warpo train RUN.toml --resume`";
const EVENTS: &str =
    "true writes event files; scripts/forward-metrics.py sends metrics.jsonl to wandb, trackio or MLflow";
const METRICS: &str = "every step is in the run folder's metrics.jsonl";
const DTYPE: &str = "\"bf16\" or \"f32\"; bf16 keeps an f32 master of the weights";
const TEMPLATE: &str = "a Jinja file; without it the model folder's own template is taken";
const TOKENIZER: &str = "tokenizer and special tokens are those of the model folder";
const REVISION: &str = "a folder on this machine has one revision";
const IMPLEMENTATION: &str = "kernels have one implementation";
const WORKERS: &str = "`train.threads` counts threads";
const LOG: &str = "`--quiet` and `-v` say how much is said";
const STRATEGY: &str = "`train.eval_every` = 0 evaluates before and after, a number every so many steps";
const WATCHED: &str = "a run that diverges ends by itself";
const FROZEN: &str = "all weights are trained";
const OWN_OPTIMIZER: &str = "the optimizers are adamw and rmsprop";
const MASKED: &str = "only what the assistant says is learnt";

/// Every name that is known. A name stands once.
pub(super) const NAMES: &[Name] = &[
    same("model_name_or_path", "TF", "model.path"),
    same("base_model", "A", "model.path"),
    near("dataset_name", "T", "data.train", FOLDER),
    near("dataset_mixer", "T", "data.train", FOLDER),
    near("dataset_mixture", "T", "data.train", FOLDER),
    near("datasets", "AT", "data.train", FOLDER),
    near("dataset", "F", "data.train", FOLDER),
    near("dataset_dir", "F", "data.train", FOLDER),
    near("dataset_test_split", "T", "data.eval", FOLDER),
    near("test_datasets", "A", "data.eval", FOLDER),
    near("eval_dataset", "F", "data.eval", FOLDER),
    near("max_length", "TA", "data.max_response_tokens", LENGTHS),
    near("sequence_len", "A", "data.max_response_tokens", LENGTHS),
    near("cutoff_len", "F", "data.max_response_tokens", LENGTHS),
    same("max_prompt_length", "TA", "data.max_prompt_tokens"),
    near("max_prompt_len", "A", "data.max_prompt_tokens", ""),
    same("max_completion_length", "TA", "data.max_response_tokens"),
    same("max_target_length", "T", "data.max_response_tokens"),
    near("truncation_mode", "T", "data.long_prompt", "\"keep_end\" or \"keep_start\" of a long prompt"),
    near("excess_length_strategy", "A", "data.long_response", "\"drop\" or \"keep_start\""),
    near("chat_template", "TA", "data.template", TEMPLATE),
    near("chat_template_path", "T", "data.template", TEMPLATE),
    near("chat_template_jinja", "A", "data.template", TEMPLATE),
    near("template", "F", "data.template", TEMPLATE),
    same("chat_template_kwargs", "TA", "data.template_kwargs"),
    near("enable_thinking", "F", "data.template_kwargs", "write `enable_thinking` in it"),
    near("per_device_train_batch_size", "TF", "batch.pairs", ROWS),
    near("gradient_accumulation_steps", "TAF", "batch.pairs", ROWS),
    near("micro_batch_size", "A", "batch.pairs", ROWS),
    near("batch_size", "A", "batch.pairs", ROWS),
    near("optim", "TF", "optim.name", "\"adamw\" or \"rmsprop\""),
    near("optimizer", "A", "optim.name", "\"adamw\" or \"rmsprop\""),
    same("learning_rate", "TAF", "optim.lr"),
    same("lr_scheduler_type", "TF", "optim.schedule"),
    same("lr_scheduler", "A", "optim.schedule"),
    near(
        "lr_scheduler_kwargs",
        "TAF",
        "optim.min_lr",
        "`min_lr` and `num_decay_steps` are `optim.min_lr` and `optim.decay_ratio`",
    ),
    near("cosine_min_lr_ratio", "A", "optim.min_lr", "the rate itself, not its share of `optim.lr`"),
    same("warmup_steps", "TAF", "optim.warmup_steps"),
    same("warmup_ratio", "TAF", "optim.warmup_ratio"),
    same("weight_decay", "TAF", "optim.weight_decay"),
    same("adam_beta1", "TAF", "optim.beta1"),
    same("adam_beta2", "TAF", "optim.beta2"),
    same("adam_epsilon", "TAF", "optim.eps"),
    same("max_grad_norm", "TAF", "optim.max_grad_norm"),
    same("num_train_epochs", "TF", "train.epochs"),
    same("num_epochs", "A", "train.epochs"),
    same("max_steps", "TAF", "train.steps"),
    same("seed", "TAF", "train.seed"),
    same("eval_steps", "TAF", "train.eval_every"),
    near("evals_per_epoch", "A", "train.eval_every", "steps between evaluations"),
    same("save_steps", "TAF", "train.save_every"),
    near("saves_per_epoch", "A", "train.save_every", "steps between checkpoints"),
    same("save_total_limit", "TAF", "train.keep_checkpoints"),
    same("metric_for_best_model", "TAF", "train.save_best"),
    near(
        "load_best_model_at_end",
        "TAF",
        "train.save_best",
        "the metric; the best weights are in `best/`, the last in `final/`",
    ),
    none("greater_is_better", "TAF", "`train.save_best` knows it of its metric"),
    same("early_stopping_patience", "TA", "train.early_stop"),
    same("early_stopping_steps", "F", "train.early_stop"),
    same("logging_steps", "TAF", "train.log_every"),
    near("sync_ref_model", "T", "train.ref_model_sync_steps", "a number above 0 turns it on"),
    same("ref_model_sync_steps", "T", "train.ref_model_sync_steps"),
    same("ref_model_mixup_alpha", "T", "train.ref_model_mixup_alpha"),
    near("bf16", "TAF", "train.precision", DTYPE),
    near("fp16", "TAF", "train.precision", DTYPE),
    near("dtype", "T", "train.precision", DTYPE),
    near("torch_dtype", "TA", "train.precision", DTYPE),
    near("pure_bf16", "F", "train.precision", DTYPE),
    near("loss_type", "T", "loss.name", "`warpo losses` lists the names, TRL's among them"),
    near("rl", "A", "loss.name", "`warpo losses` lists the names"),
    near("dpo_loss_type", "A", "loss.name", "`warpo losses` lists the names"),
    near("pref_loss", "F", "loss.name", "`warpo losses` lists the names"),
    near("stage", "F", "loss.name", "`warpo losses` lists the names"),
    same("beta", "T", "loss.beta"),
    same("pref_beta", "F", "loss.beta"),
    same("rl_beta", "A", "loss.beta"),
    same("dpo_beta", "A", "loss.beta"),
    same("kto_beta", "F", "loss.beta"),
    same("orpo_alpha", "A", "loss.lambda"),
    near("orpo_beta", "F", "loss.lambda", ""),
    same("label_smoothing", "TA", "loss.label_smoothing"),
    same("dpo_label_smoothing", "AF", "loss.label_smoothing"),
    same("simpo_gamma", "TF", "loss.simpo_gamma"),
    same("cpo_alpha", "TA", "loss.cpo_alpha"),
    same("rpo_alpha", "TA", "loss.sft_weight"),
    same("pref_ftx", "F", "loss.sft_weight"),
    same("f_divergence_type", "T", "loss.f_divergence_type"),
    none("output_dir", "TAF", OUT),
    none("overwrite_output_dir", "TF", OUT),
    none("hub_model_id", "TAF", "nothing is uploaded"),
    none("push_to_hub", "TF", "nothing is uploaded"),
    near("report_to", "TF", "train.tensorboard", EVENTS),
    none("run_name", "TAF", METRICS),
    none("wandb_project", "A", METRICS),
    none("logging_dir", "T", METRICS),
    none("plot_loss", "F", METRICS),
    none("resume_from_checkpoint", "TAF", RESUME),
    none("use_peft", "T", ADAPTER),
    none("adapter", "A", ADAPTER),
    none("finetuning_type", "F", ADAPTER),
    none("lora_r", "TA", ADAPTER),
    none("lora_rank", "F", ADAPTER),
    none("lora_alpha", "TAF", ADAPTER),
    none("lora_dropout", "TAF", ADAPTER),
    none("lora_target", "F", ADAPTER),
    none("lora_target_modules", "TA", ADAPTER),
    none("lora_target_linear", "A", ADAPTER),
    none("load_in_4bit", "TA", QUANTIZED),
    none("load_in_8bit", "TA", QUANTIZED),
    none("quantization_bit", "F", QUANTIZED),
    none("gradient_checkpointing", "TAF", MEMORY),
    none("gradient_checkpointing_kwargs", "TA", MEMORY),
    none("per_device_eval_batch_size", "TF", MEMORY),
    none("eval_batch_size", "A", MEMORY),
    none("attn_implementation", "TA", "attention has one implementation"),
    none("flash_attention", "A", "attention has one implementation"),
    none("flash_attn", "F", "attention has one implementation"),
    none("sample_packing", "A", PACKED),
    none("packing", "TF", PACKED),
    none("pad_to_sequence_len", "A", PACKED),
    none("deepspeed", "TAF", PROCESSES),
    none("fsdp", "TAF", PROCESSES),
    none("ddp_timeout", "F", PROCESSES),
    near("val_set_size", "A", "data.eval_fraction", "a share of the rows, not a number of them"),
    near("val_size", "F", "data.eval_fraction", "a share of the rows, not a number of them"),
    near("group_by_length", "TAF", "data.order", "\"length\""),
    near(
        "train_sampling_strategy",
        "T",
        "data.order",
        "\"random\", \"file\" (`sequential`) or \"length\" (`group_by_length`)",
    ),
    near("shuffle_dataset", "T", "data.order", "\"random\" or \"file\""),
    near("disable_shuffling", "F", "data.order", "\"file\""),
    none("ref_model", "F", "the reference is the model at the start, `model.path`"),
    none("precompute_ref_log_probs", "TA", "reference values are always computed once, and kept under `cache.dir`"),
    none("max_samples", "F", "cut the file"),
    none("eval_strategy", "TAF", STRATEGY),
    none("evaluation_strategy", "T", STRATEGY),
    none("save_strategy", "TAF", "`train.save_every` counts steps, `train.save_minutes` the clock"),
    none("logging_strategy", "T", "`train.log_every` counts steps"),
    none("do_train", "TF", "`warpo train` trains"),
    none("do_eval", "TF", "`data.eval` names what is evaluated"),
    none("remove_unused_columns", "TAF", "fields that nothing reads are named and left alone"),
    none("preprocessing_num_workers", "F", WORKERS),
    none("dataset_num_proc", "T", WORKERS),
    none("dataset_processes", "A", WORKERS),
    none("dataloader_num_workers", "TF", WORKERS),
    none("trust_remote_code", "TAF", "no code comes with a model"),
    none("tf32", "TA", DTYPE),
    near("dataset_splits", "T", "data.train", FOLDER),
    near("dataset_train_split", "T", "data.train", FOLDER),
    near("dataset_config", "T", "data.train", FOLDER),
    near("dataset_configs", "T", "data.train", FOLDER),
    near("pretraining_dataset", "A", "data.train", FOLDER),
    none("dataset_kwargs", "T", "`data.columns` names the fields of a file"),
    none("dataset_prepared_path", "A", "tokens are kept under `cache.dir`"),
    none("tokenized_path", "F", "tokens are kept under `cache.dir`"),
    none("overwrite_cache", "F", "the cache finds rows by their content: nothing goes stale"),
    none("streaming", "TAF", "rows are read from the file as they are needed"),
    none("skip_prepare_dataset", "A", "rows are always tokenised here"),
    near("max_seq_length", "T", "data.max_response_tokens", LENGTHS),
    none("mix_strategy", "F", "a file of `data.train` has a `weight`"),
    none("shuffle_merged_datasets", "A", "rows are shuffled by `train.seed`"),
    none("train_on_inputs", "A", MASKED),
    none("train_on_prompt", "F", MASKED),
    none("mask_history", "F", MASKED),
    none("assistant_only_loss", "T", MASKED),
    none("completion_only_loss", "T", MASKED),
    none("model_revision", "T", REVISION),
    none("revision_of_model", "A", REVISION),
    none("model_type", "A", "the folder's `config.json` says it"),
    none("tokenizer_type", "A", TOKENIZER),
    none("tokenizer_use_fast", "A", TOKENIZER),
    none("tokenizer_use_mistral_common", "A", TOKENIZER),
    none("processor_type", "A", TOKENIZER),
    none("special_tokens", "A", TOKENIZER),
    none("tokens", "A", TOKENIZER),
    none("eot_tokens", "A", TOKENIZER),
    none("eos_token", "T", TOKENIZER),
    none("pad_token", "T", TOKENIZER),
    none("resize_token_embeddings_to_32x", "A", "the vocabulary stays as it is"),
    none("resize_vocab", "F", "the vocabulary stays as it is"),
    none("strict", "A", "an unknown key is always refused"),
    none("debug", "A", LOG),
    none("log_level", "TF", LOG),
    none("logging_first_step", "TF", "the first step has a line"),
    none("disable_tqdm", "TF", LOG),
    none("save_only_model", "TAF", "a checkpoint has all that a run needs to go on"),
    none("save_safetensors", "TA", "weights are always safetensors"),
    none("save_first_step", "A", "`train.save_every` counts steps, `train.save_minutes` the clock"),
    none("eval_on_start", "TF", "held-out rows are looked at before the first step"),
    none("padding_free", "T", PACKED),
    none("packing_strategy", "T", PACKED),
    none("neat_packing", "F", PACKED),
    none("eval_sample_packing", "A", PACKED),
    none("eval_packing", "T", PACKED),
    none("max_packed_sequence_len", "A", PACKED),
    none("pad_to_multiple_of", "T", PACKED),
    none("average_tokens_across_devices", "TF", PROCESSES),
    none("ddp_find_unused_parameters", "TAF", PROCESSES),
    none("use_kernels", "A", IMPLEMENTATION),
    none("use_v1_kernels", "F", IMPLEMENTATION),
    none("use_liger_kernel", "T", IMPLEMENTATION),
    none("enable_liger_kernel", "F", IMPLEMENTATION),
    none("use_unsloth", "F", IMPLEMENTATION),
    none("torch_compile", "TAF", IMPLEMENTATION),
    none("plugins", "A", "there are no plugins: losses, kernels and feeds are in the program"),
    none("disable_gradient_checkpointing", "F", MEMORY),
    none("use_reentrant_gc", "F", MEMORY),
    none("activation_offloading", "TA", MEMORY),
    none("double_quantization", "F", QUANTIZED),
    none("gptq", "A", QUANTIZED),
    none("unfrozen_parameters", "A", FROZEN),
    none("use_llama_pro", "F", FROZEN),
    none("adapter_name_or_path", "F", ADAPTER),
    none("additional_target", "F", ADAPTER),
    none("create_new_adapter", "F", ADAPTER),
    none("use_dora", "TF", ADAPTER),
    none("use_rslora", "TF", ADAPTER),
    none("use_adam_mini", "F", OWN_OPTIMIZER),
    none("use_muon", "F", OWN_OPTIMIZER),
    none("optim_args", "TAF", OWN_OPTIMIZER),
    none("loss_watchdog_threshold", "A", WATCHED),
    none("loss_watchdog_patience", "A", WATCHED),
    none("neftune_noise_alpha", "TAF", "embeddings get no noise"),
    none("label_smoothing_factor", "TAF", "`loss.label_smoothing` is another: the share of labels taken to be wrong"),
    none("cosine_constant_lr_ratio", "A", "`optim.schedule` is linear, cosine, constant or warmup_stable_decay"),
    none("eta_min", "A", "`optim.min_lr` is the rate itself"),
    none("eval_table_size", "A", "nothing is generated while a run trains"),
    none("eval_max_new_tokens", "A", "nothing is generated while a run trains"),
    none("do_causal_lm_eval", "A", "nothing is generated while a run trains"),
    none("eval_causal_lm_metrics", "A", "held-out rows are measured as those of a step are"),
    none("predict_with_generate", "F", "nothing is generated while a run trains"),
    none("do_predict", "F", "nothing is generated while a run trains"),
    none("generate_during_eval", "T", "nothing is generated while a run trains"),
    none("ref_model_init_kwargs", "T", "the reference is the model at the start, `model.path`"),
    none("model_init_kwargs", "T", "the folder's `config.json` says it"),
    none("dataset_shuffle_seed", "A", "rows are shuffled by `train.seed`"),
    none("data_seed", "TF", "rows are shuffled by `train.seed`"),
    same("desirable_weight", "T", "loss.desirable_weight"),
    same("undesirable_weight", "T", "loss.undesirable_weight"),
    same("kto_desirable_weight", "A", "loss.desirable_weight"),
    same("kto_undesirable_weight", "A", "loss.undesirable_weight"),
    same("kto_chosen_weight", "F", "loss.desirable_weight"),
    same("kto_rejected_weight", "F", "loss.undesirable_weight"),
    near("loss_weights", "T", "loss.weight", "a `[[loss]]` each has its `weight`"),
];

/// Families of settings by how their names begin, and why there is no counterpart; a name of [`NAMES`] comes first.
pub(super) const FAMILIES: &[(&str, &str)] = &[
    ("lora_", ADAPTER),
    ("loraplus_", ADAPTER),
    ("peft_", ADAPTER),
    ("oft_", ADAPTER),
    ("pissa_", ADAPTER),
    ("qalora_", ADAPTER),
    ("bnb_", QUANTIZED),
    ("quantization_", QUANTIZED),
    ("quantize_", QUANTIZED),
    ("gptq_", QUANTIZED),
    ("qat", QUANTIZED),
    ("fp8", QUANTIZED),
    ("load_in_", QUANTIZED),
    ("wandb_", METRICS),
    ("use_wandb", METRICS),
    ("swanlab_", METRICS),
    ("use_swanlab", METRICS),
    ("mlflow_", METRICS),
    ("trackio_", METRICS),
    ("comet_", METRICS),
    ("hub_", "nothing is uploaded"),
    ("push_", "nothing is uploaded"),
    ("fsdp_", PROCESSES),
    ("deepspeed_", PROCESSES),
    ("ddp_", PROCESSES),
    ("ray_", PROCESSES),
    ("dp_", PROCESSES),
    ("tensor_parallel_", PROCESSES),
    ("context_parallel_", PROCESSES),
    ("expert_parallel_", PROCESSES),
    ("sequence_parallel_", PROCESSES),
    ("flash_", IMPLEMENTATION),
    ("flex_", IMPLEMENTATION),
    ("liger_", IMPLEMENTATION),
    ("xformers_", IMPLEMENTATION),
    ("sdp_", IMPLEMENTATION),
    ("torch_compile_", IMPLEMENTATION),
    ("unsloth_", IMPLEMENTATION),
    ("dataloader_", WORKERS),
    ("use_galore", OWN_OPTIMIZER),
    ("galore_", OWN_OPTIMIZER),
    ("use_apollo", OWN_OPTIMIZER),
    ("apollo_", OWN_OPTIMIZER),
    ("use_badam", OWN_OPTIMIZER),
    ("badam_", OWN_OPTIMIZER),
    ("freeze_", FROZEN),
    ("image_", "models read text only"),
    ("video_", "models read text only"),
    ("audio_", "models read text only"),
];

/// What is known of a name: its row, else why its family has no counterpart.
pub(super) fn known(name: &str) -> Option<Result<&'static Name, &'static str>> {
    let family = || FAMILIES.iter().find(|(start, _)| name.starts_with(start)).map(|(_, words)| Err(*words));
    NAMES.iter().find(|known| known.name == name).map(Ok).or_else(family)
}

/// Keys that TRL has no name for.
#[cfg(test)]
pub(super) const WITHOUT_TRL: &[&str] = &[
    "model.init",
    "model.older_reference",
    "data.eval_fraction",
    "data.long_response",
    "data.long_text",
    "data.date",
    "data.on_error",
    "data.max_row_bytes",
    "data.columns",
    "batch.packs",
    "batch.tokens",
    "optim.decay_ratio",
    "optim.alpha",
    "optim.gradients",
    "optim.moments",
    "optim.moments_on",
    "train.save_minutes",
    "train.ema",
    "train.threads",
    "train.cuda_graph",
    "train.recompute",
    "train.head_chunk_rows",
    "train.track_reference",
    "cache.dir",
];
