# llm-sparsity: how much of a pretrained transformer can be removed, and what does that really save?
# The stages in the order in which data flows through them; ARCHITECTURE.md draws the picture.

from pathlib import Path

from snakemake.utils import min_version

min_version("9.19")

if "models" not in config and not workflow.overwrite_configfiles:  # a study is one file, never a merge of two

    configfile: "config.yaml" if Path("config.yaml").exists() else f"{workflow.basedir}/config.yaml"


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"
include: "workflow/rules/download.smk"
include: "workflow/rules/prune.smk"
include: "workflow/rules/weights.smk"
include: "workflow/rules/finetune.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/zero_shot.smk"
include: "workflow/rules/measure.smk"
include: "workflow/rules/collect.smk"
include: "workflow/rules/plot.smk"


rule all:
    default_target: True
    input:
        rules.plot.output,


onstart:
    run_command(check_before_start)


onsuccess:
    show_summary()


onerror:
    show_failures()
