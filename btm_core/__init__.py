"""Balanced Training and Merging (BTM) for long-tailed image classification, as a plain library.

The method: Yu, Du, Wu, "Reviving Undersampling for Long-tailed Learning". `btm_core` computes; it knows neither
Prefect nor MLflow. Modules are imported by name (`from btm_core.metrics import recall_report`), so that importing the
package costs nothing.
"""

__version__ = "0.1.0"
