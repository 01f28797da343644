"""Learned-model predictive control for ROS 2: record, train, drive, retrain."""

__version__ = '0.1.0'
