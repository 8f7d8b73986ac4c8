# evaluate: the perplexity of a causal language model, without training.
#
# needs   the folder of a variant, resources/tasks/{task}/
# leaves  results/{model}/{variant}/{task}/metrics.json, predictions.csv, runtime.json


rule evaluate:
    input:
        model=model_manifest,
        weights=ancient(model_weights),
        task="resources/tasks/{task}/manifest.json",
    output:
        metrics="results/{model}/{variant}/{task}/metrics.json",
        predictions="results/{model}/{variant}/{task}/predictions.csv",
        runtime="results/{model}/{variant}/{task}/runtime.json",
    log:
        "logs/evaluate/{model}/{variant}/{task}.log",
    wildcard_constraints:
        task=one_of(STUDY.tasks_of("language-model")),
    threads: 1
    resources:
        gpu=1,
        runtime=runtime("evaluate"),
        mem_mb=megabytes(footprint.mem_mb, "evaluate"),
        disk_mb=megabytes(footprint.disk_mb, "evaluate"),
    params:
        settings=evaluate_settings,
        code=code("evaluate"),
    shell:
        'python "$LLM_SPARSITY/scripts/evaluate.py" --model "$(dirname {input.model:q})"'
        ' --task "$(dirname {input.task:q})" --output "$(dirname {output.metrics:q})"'
        " --threads {threads} --gpus {resources.gpu} --settings {params.settings:q} > {log:q} 2>&1"
