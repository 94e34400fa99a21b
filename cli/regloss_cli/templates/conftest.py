"""Failing checks of regloss.testing show the values that they compared."""

import pytest

pytest.register_assert_rewrite("regloss.testing")
