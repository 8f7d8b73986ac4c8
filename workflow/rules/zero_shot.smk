# zero_shot: the accuracy of a causal language model on a task of lm-evaluation-harness, without training.
#
# needs   the folder of a variant, resources/tasks/{task}/, resources/harness/
# leaves  results/{model}/{variant}/{task}/metrics.json, runtime.json, and lm_eval.json, the harness's own results


rule zero_shot:
    input:
        model=model_manifest,
        weights=ancient(model_weights),
        task="resources/tasks/{task}/manifest.json",
        harness="resources/harness/manifest.json",
    output:
        metrics="results/{model}/{variant}/{task}/metrics.json",
        runtime="results/{model}/{variant}/{task}/runtime.json",
        own="results/{model}/{variant}/{task}/lm_eval.json",
    log:
        "logs/zero_shot/{model}/{variant}/{task}.log",
    wildcard_constraints:
        task=one_of(STUDY.tasks_of("zero-shot")),
    threads: 1
    resources:
        gpu=1,
        runtime=runtime("zero_shot"),
        mem_mb=megabytes(footprint.mem_mb, "zero_shot"),
        disk_mb=megabytes(footprint.disk_mb, "zero_shot"),
    params:
        settings=evaluate_settings,
        code=code("zero_shot"),
    shell:
        'python "$LLM_SPARSITY/scripts/zero_shot.py" --model "$(dirname {input.model:q})"'
        ' --task "$(dirname {input.task:q})" --harness "$(dirname {input.harness:q})"'
        ' --output "$(dirname {output.metrics:q})" --threads {threads} --gpus {resources.gpu}'
        " --settings {params.settings:q} > {log:q} 2>&1"
