"""lm-eval's command line with bundles as one of its models:

python -m edge_svd.evaluate.lm_eval --model edge-svd --model_args bundle=out --tasks arc_easy
"""

from __future__ import annotations

import importlib.util
import sys

from edge_svd.errors import EdgeSvdError, InputError


def main() -> None:
    """Run `lm_eval` with the arguments of this process; errors of ours end as one sentence and their exit code."""
    try:
        if importlib.util.find_spec("lm_eval") is None:
            raise InputError("This command needs lm-eval; install it with: pip install 'edge-svd[lm-eval]'.")
        import lm_eval.__main__ as harness

        import edge_svd.evaluate.lm_eval_model  # noqa: F401  (registers the model)

        harness.cli_evaluate()
    except EdgeSvdError as error:
        print(f"edge-svd: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
