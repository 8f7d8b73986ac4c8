# plot: figures and one page, from the tables alone.
#
# needs   reports/{study}/tables/*.csv
# leaves  reports/{study}/figures/*.svg, *.png; report.html (one file, no network); summary.txt

METHODS = sorted({part for _, variant in CELLS.variants if not variant.is_dense for part in variant.method.split("+")})


localrules:
    plot,


rule plot:
    input:
        # Snakemake compares only small files by content; the manifest tells whether the tables changed.
        manifest=rules.collect.output.manifest,
        tables=ancient(rules.collect.output.tables),
        claims=named_file("claims"),
        numbers=claims_numbers(),
        published=named_file("published"),
    output:
        figures=report(
            directory(f"reports/{STUDY.name}/figures"),
            patterns=["{figure}.svg"],
            category="Figures",
            labels={"figure": "{figure}"},
            caption="../report/figures.rst",
        ),
        page=report(f"reports/{STUDY.name}/report.html", category="Page", caption="../report/page.rst"),
        summary=f"reports/{STUDY.name}/summary.txt",
    log:
        f"logs/plot/{STUDY.name}.log",
    threads: lambda wildcards: min(all_cores(wildcards), footprint.PLOTTERS)
    resources:
        mem_mb=megabytes(footprint.mem_mb, "plot"),
        disk_mb=megabytes(footprint.disk_mb, "plot"),
    params:
        settings=settings(
            config=STUDY.model_dump(
                exclude_none=True, exclude={"models": {"__all__": {"parameters"}}, "tracker": True}
            ),
            methods={method: methods.NOTES[method] for method in METHODS},
        ),
        code=code("plot", files=[Path(methods.__file__).parents[1] / "reporting/report.html.jinja"]),
        named=contents(named_file("claims"), claims_numbers(), named_file("published")),
    shell:
        'python "$LLM_SPARSITY/scripts/plot.py" --tables "$(dirname {input.manifest:q})"'
        ' --output "$(dirname {output.page:q})" --claims {input.claims:q} --published {input.published:q}'
        " --processes {threads} --settings {params.settings:q} > {log:q} 2>&1"
