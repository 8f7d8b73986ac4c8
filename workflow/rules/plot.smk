# plot: figures and one page, from the tables alone.
#
# needs   reports/{study}/tables/*.csv
# leaves  reports/{study}/figures/*.svg, *.png; report.html (one file, no network); summary.txt

METHODS = sorted({variant.method for _, variant in CELLS.variants if not variant.is_dense})


localrules:
    plot,


rule plot:
    input:
        # Snakemake compares small files alone by content; of the tables the manifest says whether they are others.
        manifest=rules.collect.output.manifest,
        tables=ancient(rules.collect.output.tables),
    output:
        figures=report(
            directory(f"reports/{STUDY.name}/figures"),
            patterns=["{figure}.svg"],
            category="Figures",
            labels={"figure": "{figure}"},
        ),
        report=f"reports/{STUDY.name}/report.html",
        summary=f"reports/{STUDY.name}/summary.txt",
    log:
        f"logs/plot/{STUDY.name}.log",
    conda:
        "../../envs/environment.yaml"
    params:
        settings=settings(
            config=STUDY.model_dump(exclude_none=True, exclude={"models": {"__all__": {"parameters"}}}),
            methods={method: study_config.METHOD_NOTES[method] for method in METHODS},
        ),
        code=code("plot", files=sorted((WORKFLOW / "workflow/report").iterdir())),
    shell:
        f"python scripts/plot.py --tables reports/{STUDY.name}/tables --output reports/{STUDY.name}"
        " --settings {params.settings:q} > {log} 2>&1"
