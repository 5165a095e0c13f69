"""python -m tools.bench [NAME [OPTIONS]]: runs one benchmark, or each in turn.

Owns no benchmark: every module of this package that holds a click command of its own name is one, and is
imported only when it is asked for or listed.
"""

import importlib
import pkgutil

import click

from tools import bench


class Benchmarks(click.Group):
    """The modules of the package as commands."""

    def list_commands(self, context: click.Context) -> list[str]:
        return [name for name in _modules() if self.get_command(context, name)]

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in _modules():
            return None
        command = getattr(importlib.import_module(f"tools.bench.{name}"), name, None)
        return command if isinstance(command, click.Command) else None


def _modules() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(bench.__path__) if module.name != "__main__")


@click.group(cls=Benchmarks, invoke_without_command=True)
@click.pass_context
def main(context: click.Context) -> None:
    """Measure parts of minitrue. Without a name, every benchmark runs with its defaults, in turn."""
    if context.invoked_subcommand is None:
        for name in main.list_commands(context):
            click.echo(f"== {name}")
            main([name], standalone_mode=False)
            click.echo()


if __name__ == "__main__":
    main(prog_name="python -m tools.bench")
