# evaluate: the perplexity of a causal language model, without training.
#
# needs   the folder of a variant, resources/tasks/{task}/
# leaves  results/{model}/{variant}/{task}/metrics.json, runtime.json


rule evaluate:
    input:
        model=model_manifest,
        task="resources/tasks/{task}/manifest.json",
    output:
        metrics="results/{model}/{variant}/{task}/metrics.json",
        runtime="results/{model}/{variant}/{task}/runtime.json",
    log:
        "logs/evaluate/{model}/{variant}/{task}.log",
    wildcard_constraints:
        task=one_of(STUDY.tasks_of("language-model")),
    conda:
        "../../envs/environment.yaml"
    threads: 1
    resources:
        gpu=1,
        runtime=runtime("evaluate"),
    params:
        settings=evaluate_settings,
        code=code("evaluate"),
    shell:
        "python scripts/evaluate.py --model $(dirname {input.model}) --task $(dirname {input.task}) --output $(dirname {output.metrics})"
        " --threads {threads} --gpus {resources.gpu} --settings {params.settings:q} > {log} 2>&1"
